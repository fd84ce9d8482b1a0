// The taps of a PMRB without gradients, in one pass over memory: three 1x1 convolutions with their activations, the
// fusion of all four taps with its own, and the statistics of the result that the channel attention needs.
// `../fused.py` calls this and says what it computes.
//
// A map is (n, pixels, c) in memory. Work is done in tiles of TILE pixels, so that what lies between two layers stays in
// the first-level cache. Its core is a product of M pixels with two vectors of output channels, whose sums stay in
// registers: enough of them to hide the latency of a multiplication.
#include "vectors.h"

namespace {

constexpr int M = REGISTER == 64 ? 12 : 6;  // 2 M sums, 2 weights and a pixel's value: 32 registers, or 16
constexpr int64_t TILE = 48;                // a multiple of M
constexpr int64_t TASK = 16 * TILE;         // pixels whose statistics are summed in T

// A panel of a weight (outputs, inputs), which lies `stride` apart from output to output: inputs x (2 lanes), outputs
// from `first` on.
template <typename T>
void pack(const T* weight, int64_t stride, int64_t inputs, int64_t first, T* panel) {
  constexpr int64_t width = 2 * Vector<T>::lanes;
  for (int64_t k = 0; k < inputs; ++k)
    for (int64_t o = 0; o < width; ++o) panel[k * width + o] = weight[(first + o) * stride + k];
}

// Keeps the compiler from loading them again for each product.
template <typename T>
inline __attribute__((always_inline)) void in_registers(Vec<T>& a, Vec<T>& b) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(a), "+v"(b));
#elif defined(__x86_64__)
  __asm__("" : "+x"(a), "+x"(b));
#endif
}

// sums[p] += x[p] times a panel, for COUNT pixels that lie `stride` apart.
template <int COUNT, typename T>
inline __attribute__((always_inline)) void multiply(const T* x, int64_t stride, const T* panel, int64_t inputs,
                                                    Vec<T> (&sums)[COUNT][2]) {
  constexpr int64_t lanes = Vector<T>::lanes;
  for (int64_t k = 0; k < inputs; ++k) {
    Vec<T> a = load(panel + 2 * lanes * k), b = load(panel + 2 * lanes * k + lanes);
    in_registers<T>(a, b);
#pragma GCC unroll 12
    for (int p = 0; p < COUNT; ++p) {
      sums[p][0] += x[p * stride + k] * a;
      sums[p][1] += x[p * stride + k] * b;
    }
  }
}

// Calls work(p, std::integral_constant<int, COUNT>) for groups of M pixels, and for each of those that are left.
template <typename Work>
inline void pixels(int64_t count, const Work& work) {
  int64_t p = 0;
  for (; p + M <= count; p += M) work(p, std::integral_constant<int, M>{});
  for (; p < count; ++p) work(p, std::integral_constant<int, 1>{});
}

struct Shape {
  int64_t n, pixels, c, tap;  // images, pixels of each, channels, channels of a tap
};

// Parameters of a 1x1 convolution with an activation behind it; a slope for each output.
template <typename T>
struct Layer {
  const T *weight, *bias, *slope;
};

// maps: the feature before each group, (n, pixels, c), and the last tap, (n, pixels, tap), activated. layers: of the
// first three taps, and of the fusion of all four. out: (n, pixels, c), with its channels' variance and mean.
template <typename T>
void taps(const T* const* maps, const Layer<T>* layers, T* out, T* variance, T* mean, const Shape& s) {
  constexpr int64_t lanes = Vector<T>::lanes, width = 2 * lanes;
  const int64_t tap_panels = s.tap / width, panels = s.c / width;
  Zeros<T> packed(3 * s.tap * s.c + 4 * s.tap * s.c);
  T* const fusion = packed.data() + 3 * s.tap * s.c;
  for (int64_t i = 0; i < 3; ++i)
    for (int64_t q = 0; q < tap_panels; ++q)
      pack(layers[i].weight, s.c, s.c, q * width, packed.data() + (i * tap_panels + q) * s.c * width);
  for (int64_t q = 0; q < panels; ++q)
    pack(layers[3].weight, 4 * s.tap, 4 * s.tap, q * width, fusion + q * 4 * s.tap * width);

  const int64_t tasks = (s.pixels + TASK - 1) / TASK;
  std::vector<double> sums(s.n * tasks * s.c * 2);
  std::vector<T> shifts(s.n * s.c);  // of the statistics: each image's first pixel
  const int64_t threads = omp_get_max_threads(), scratch = TILE * 3 * s.tap + 2 * s.c;
  Zeros<T> buffers(threads * scratch);

  // One tile; sum(q, value, other) takes the values of panel q.
  const auto tile = [&](int64_t image, int64_t first, int64_t count, T* z, const auto& sum) {
    const int64_t at = image * s.pixels + first;
    for (int64_t i = 0; i < 3; ++i)
      for (int64_t q = 0; q < tap_panels; ++q) {
        const T* const panel = packed.data() + (i * tap_panels + q) * s.c * width;
        const Vec<T> bias[2] = {load(layers[i].bias + q * width), load(layers[i].bias + q * width + lanes)};
        const Vec<T> slope[2] = {load(layers[i].slope + q * width), load(layers[i].slope + q * width + lanes)};
        pixels(count, [&](int64_t p, auto group) {
          constexpr int COUNT = decltype(group)::value;
          Vec<T> value[COUNT][2];
          for (int k = 0; k < COUNT; ++k) value[k][0] = bias[0], value[k][1] = bias[1];
          multiply<COUNT, T>(maps[i] + (at + p) * s.c, s.c, panel, s.c, value);
          for (int k = 0; k < COUNT; ++k)
            for (int v = 0; v < 2; ++v)
              store<T>(z + (p + k) * 3 * s.tap + i * s.tap + q * width + v * lanes, prelu<T>(value[k][v], slope[v]));
        });
      }
    for (int64_t q = 0; q < panels; ++q) {
      const T* const panel = fusion + q * 4 * s.tap * width;
      const Vec<T> bias[2] = {load(layers[3].bias + q * width), load(layers[3].bias + q * width + lanes)};
      const Vec<T> slope[2] = {load(layers[3].slope + q * width), load(layers[3].slope + q * width + lanes)};
      pixels(count, [&](int64_t p, auto group) {
        constexpr int COUNT = decltype(group)::value;
        Vec<T> value[COUNT][2];
        for (int k = 0; k < COUNT; ++k) value[k][0] = bias[0], value[k][1] = bias[1];
        multiply<COUNT, T>(z + p * 3 * s.tap, 3 * s.tap, panel, 3 * s.tap, value);
        multiply<COUNT, T>(maps[3] + (at + p) * s.tap, s.tap, panel + 3 * s.tap * width, s.tap, value);
        for (int k = 0; k < COUNT; ++k) {
          for (int v = 0; v < 2; ++v) value[k][v] = prelu<T>(value[k][v], slope[v]);
          sum(q, p + k, value[k]);
        }
      });
    }
  };

  for (int64_t image = 0; image < s.n; ++image)
    tile(image, 0, 1, buffers.data(), [&](int64_t q, int64_t, const Vec<T>* value) {
      for (int v = 0; v < 2; ++v) store<T>(shifts.data() + image * s.c + q * width + v * lanes, value[v]);
    });
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t task = 0; task < s.n * tasks; ++task) {
    const int64_t image = task / tasks, begin = task % tasks * TASK, end = std::min(begin + TASK, s.pixels);
    T* const z = buffers.data() + omp_get_thread_num() * scratch;
    T* const total = z + TILE * 3 * s.tap;  // c sums of differences, c of their squares
    std::fill(total, total + 2 * s.c, T(0));
    const T* const shift = shifts.data() + image * s.c;
    for (int64_t first = begin; first < end; first += TILE)
      tile(image, first, std::min(TILE, end - first), z, [&](int64_t q, int64_t p, const Vec<T>* value) {
        for (int v = 0; v < 2; ++v) {
          const int64_t channel = q * width + v * lanes;
          store<T>(out + (image * s.pixels + first + p) * s.c + channel, value[v]);
          const Vec<T> difference = value[v] - load(shift + channel);
          store<T>(total + channel, Vec<T>(load(total + channel) + difference));
          store<T>(total + s.c + channel, Vec<T>(load(total + s.c + channel) + difference * difference));
        }
      });
    for (int64_t k = 0; k < 2 * s.c; ++k) sums[task * 2 * s.c + k] = total[k];
  }
  for (int64_t image = 0; image < s.n; ++image)
    for (int64_t channel = 0; channel < s.c; ++channel) {
      double sum = 0, square = 0;
      for (int64_t task = image * tasks; task < (image + 1) * tasks; ++task) {
        sum += sums[task * 2 * s.c + channel];
        square += sums[task * 2 * s.c + s.c + channel];
      }
      const double difference = sum / s.pixels;
      mean[image * s.c + channel] = shifts[image * s.c + channel] + difference;
      variance[image * s.c + channel] = std::max(0.0, square / s.pixels - difference * difference);
    }
}

}  // namespace

// Channels that c and tap must be multiples of.
extern "C" int pmrb_multiple() { return 2 * Vector<COMPUTED>::lanes; }

extern "C" int pmrb_taps(const COMPUTED* const* maps, const COMPUTED* const* parameters, COMPUTED* out,
                         COMPUTED* variance, COMPUTED* mean, const Shape* shape) {
  Layer<COMPUTED> layers[4];
  for (int i = 0; i < 4; ++i) layers[i] = {parameters[3 * i], parameters[3 * i + 1], parameters[3 * i + 2]};
  return status_of([&] { taps<COMPUTED>(maps, layers, out, variance, mean, *shape); });
}
