// The taps of a PMRB without gradients, in one pass over memory: three 1x1 convolutions with their activations, the
// fusion of all four taps with its activation, and the channel statistics of the result, which the attention needs.
// `cpu.py` calls this; `layers.taps` defines what it computes.
//
// Maps are stored in type S and computed in type T, as in cffb.cpp. A map is (n, pixels, c) in memory. Work is done in
// tiles of TILE pixels, so that what lies between two layers stays in the first-level cache. The core is a product of
// PIXELS pixels with two vectors of output channels. Its sums stay in registers; there are enough of them to hide the
// latency of a multiplication.
#include "vectors.h"

namespace {

constexpr int PIXELS = REGISTER == 64 ? 8 : 6;  // registers hold 2 * PIXELS sums, 2 weights, a pixel's value, addresses
// A multiple of PIXELS. Statistics are summed over a tile in T, over tiles in double.
constexpr int64_t TILE = 96;
constexpr int64_t TASK = 8 * TILE;  // pixels that a thread takes at a time

// A panel holds a weight's factors for two vectors of output channels, in the order in which `multiply` reads them.
// WIDTH is the number of those channels.
template <typename T>
constexpr int64_t LANES = Vector<T>::lanes;
template <typename T>
constexpr int64_t WIDTH = 2 * LANES<T>;

// The product of maps of type S with weights of type T, summed in T. A step takes `inputs` input channels: here one,
// with the weight in T.
template <typename S, typename T>
struct Product {
  typedef T Factor;
  static constexpr int64_t inputs = 1;

  // Packs WIDTH outputs, from `first` on, of a weight (outputs, inputs); its outputs lie `stride` apart.
  static void pack(const T* weight, int64_t stride, int64_t count, int64_t first, Factor* panel) {
    for (int64_t k = 0; k < count; ++k)
      for (int64_t o = 0; o < WIDTH<T>; ++o) panel[k * WIDTH<T> + o] = weight[(first + o) * stride + k];
  }

  static inline __attribute__((always_inline)) void add(const S* x, const Vec<T>& a, const Vec<T>& b,
                                                        Vec<T> (&sum)[2]) {
    const T value = widened(*x);
    sum[0] += value * a;
    sum[1] += value * b;
  }
};

#if defined(__AVX512BF16__) && defined(__AVX512F__)
// VDPBF16PS takes pairs of inputs, with the weight rounded to bfloat16 too: twice as many products per instruction.
template <>
struct Product<bfloat16, float> {
  typedef uint32_t Factor;
  static constexpr int64_t inputs = 2;

  static void pack(const float* weight, int64_t stride, int64_t count, int64_t first, Factor* panel) {
    for (int64_t k = 0; k < count; k += 2)
      for (int64_t o = 0; o < WIDTH<float>; ++o) {
        const float* const from = weight + (first + o) * stride + k;
        const Half pair = halved(Vec<float>{from[0], from[1]});
        std::memcpy(panel + k / 2 * WIDTH<float> + o, &pair, sizeof *panel);
      }
  }

  static inline __attribute__((always_inline)) void add(const bfloat16* x, const Vec<float>& a, const Vec<float>& b,
                                                        Vec<float> (&sum)[2]) {
    int pair;
    std::memcpy(&pair, x, sizeof pair);
    const __m512bh value = (__m512bh)_mm512_set1_epi32(pair);
    sum[0] = _mm512_dpbf16_ps(sum[0], value, (__m512bh)a);
    sum[1] = _mm512_dpbf16_ps(sum[1], value, (__m512bh)b);
  }
};
#endif

// Keeps `a` and `b` in registers: otherwise the compiler loads them again for each product.
template <typename T>
inline __attribute__((always_inline)) void in_registers(Vec<T>& a, Vec<T>& b) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(a), "+v"(b));
#elif defined(__x86_64__)
  __asm__("" : "+x"(a), "+x"(b));
#endif
}

// sums[p] += x[p] times a panel, for COUNT pixels that lie `stride` apart.
template <int COUNT, typename S, typename T>
inline __attribute__((always_inline)) void multiply(const S* x, int64_t stride,
                                                    const typename Product<S, T>::Factor* panel, int64_t inputs,
                                                    Vec<T> (&sums)[COUNT][2]) {
  typedef Product<S, T> Product;
  for (int64_t k = 0; k < inputs; k += Product::inputs, panel += WIDTH<T>) {
    Vec<T> a = load_bits<T>(panel), b = load_bits<T>(panel + LANES<T>);
    in_registers<T>(a, b);
#pragma GCC unroll 12
    for (int p = 0; p < COUNT; ++p) Product::add(x + p * stride + k, a, b, sums[p]);
  }
}

// Prefetches the cache lines of `count` values, which the next tile will read.
template <typename S>
inline void fetch(const S* from, int64_t count) {
  for (int64_t k = 0; k < count; k += 64 / sizeof(S)) __builtin_prefetch(from + k, 0, 3);
}

// Calls work(p, std::integral_constant<int, COUNT>) for each whole group of PIXELS pixels, then for each pixel left.
template <typename Work>
inline void pixel_groups(int64_t count, const Work& work) {
  int64_t p = 0;
  for (; p + PIXELS <= count; p += PIXELS) work(p, std::integral_constant<int, PIXELS>{});
  for (; p < count; ++p) work(p, std::integral_constant<int, 1>{});
}

// Mirrored by `TapSizes` of cpu.py.
struct TapSizes {
  int64_t n, pixels;  // images, and pixels of each
  int64_t c, tap;     // channels of the maps and of a tap: multiples of WIDTH
};

// maps: the feature before each of the three RCGs, (n, pixels, c), and the last tap, (n, pixels, tap), activated.
// layers: the 1x1 convolutions of the first three taps and of the fusion, each with a slope for each output.
// out: (n, pixels, c); variance, mean: its channel statistics, (n, c).
template <typename S, typename T>
void taps(const S* const* maps, const Layer<const T>* layers, S* out, T* variance, T* mean, const TapSizes& s) {
  typedef Product<S, T> Product;
  typedef typename Product::Factor Factor;
  constexpr int64_t lanes = LANES<T>, width = WIDTH<T>;
  const int64_t tap_panels = s.tap / width, panels = s.c / width;
  // Factors of a panel: of a tap, of the part of the fusion that takes the first three taps, and of the whole fusion.
  const int64_t of_tap = s.c / Product::inputs * width, of_three = 3 * s.tap / Product::inputs * width;
  const int64_t of_fusion = 4 * s.tap / Product::inputs * width;
  Zeros<Factor> packed(3 * tap_panels * of_tap + panels * of_fusion);
  Factor* const fusion = packed.data() + 3 * tap_panels * of_tap;
  for (int64_t i = 0; i < 3; ++i)
    for (int64_t q = 0; q < tap_panels; ++q)
      Product::pack(layers[i].weight, s.c, s.c, q * width, packed.data() + (i * tap_panels + q) * of_tap);
  for (int64_t q = 0; q < panels; ++q)
    Product::pack(layers[3].weight, 4 * s.tap, 4 * s.tap, q * width, fusion + q * of_fusion);

  const int64_t tasks = (s.pixels + TASK - 1) / TASK;
  std::vector<double> sums(s.n * tasks * s.c * 2);
  std::vector<T> shifts(s.n * s.c);  // each image's first pixel, from which its statistics take differences
  const int64_t threads = omp_get_max_threads();
  Zeros<S> between(threads * TILE * 3 * s.tap);  // the first three taps of a tile
  Zeros<T> totals(threads * 2 * s.c);            // sums of differences, then of their squares

  // Computes one tile; put(q, p, values) takes the values of panel q for the group of pixels that begins at p.
  const auto tile = [&](int64_t image, int64_t first, int64_t count, S* z, const auto& put) {
    const int64_t at = image * s.pixels + first;
    for (int64_t i = 0; i < 3; ++i)
      for (int64_t q = 0; q < tap_panels; ++q) {
        const Factor* const panel = packed.data() + (i * tap_panels + q) * of_tap;
        const T *const bias = layers[i].bias + q * width, *const slope = layers[i].slope + q * width;
        pixel_groups(count, [&](int64_t p, auto group) {
          constexpr int COUNT = decltype(group)::value;
          Vec<T> value[COUNT][2];
          for (int k = 0; k < COUNT; ++k) value[k][0] = load(bias), value[k][1] = load(bias + lanes);
          if (q == 0) fetch(maps[i] + (at + p + TILE) * s.c, COUNT * s.c);
          multiply<COUNT, S, T>(maps[i] + (at + p) * s.c, s.c, panel, s.c, value);
          for (int k = 0; k < COUNT; ++k)
            for (int v = 0; v < 2; ++v)
              store(z + ((p + k) * 3 + i) * s.tap + q * width + v * lanes,
                    prelu<T>(value[k][v], load(slope + v * lanes)));
        });
      }
    for (int64_t q = 0; q < panels; ++q) {
      const Factor* const panel = fusion + q * of_fusion;
      const T *const bias = layers[3].bias + q * width, *const slope = layers[3].slope + q * width;
      pixel_groups(count, [&](int64_t p, auto group) {
        constexpr int COUNT = decltype(group)::value;
        Vec<T> value[COUNT][2];
        for (int k = 0; k < COUNT; ++k) value[k][0] = load(bias), value[k][1] = load(bias + lanes);
        if (q == 0) fetch(maps[3] + (at + p + TILE) * s.tap, COUNT * s.tap);
        multiply<COUNT, S, T>(z + p * 3 * s.tap, 3 * s.tap, panel, 3 * s.tap, value);
        multiply<COUNT, S, T>(maps[3] + (at + p) * s.tap, s.tap, panel + of_three, s.tap, value);
        for (int k = 0; k < COUNT; ++k)
          for (int v = 0; v < 2; ++v) value[k][v] = prelu<T>(value[k][v], load(slope + v * lanes));
        put(q, p, value);
      });
    }
  };

  for (int64_t image = 0; image < s.n; ++image)
    tile(image, 0, 1, between.data(), [&](int64_t q, int64_t, const auto& values) {
      for (int v = 0; v < 2; ++v) store<T>(shifts.data() + image * s.c + q * width + v * lanes, values[0][v]);
    });
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t task = 0; task < s.n * tasks; ++task) {
    const int64_t image = task / tasks, begin = task % tasks * TASK, end = std::min(begin + TASK, s.pixels);
    S* const z = between.data() + omp_get_thread_num() * TILE * 3 * s.tap;
    T* const total = totals.data() + omp_get_thread_num() * 2 * s.c;
    const T* const shift = shifts.data() + image * s.c;
    for (int64_t first = begin; first < end; first += TILE) {
      std::fill(total, total + 2 * s.c, T(0));
      tile(image, first, std::min(TILE, end - first), z, [&](int64_t q, int64_t p, const auto& values) {
        for (int v = 0; v < 2; ++v) {
          const int64_t channel = q * width + v * lanes;
          const Vec<T> origin = load(shift + channel);
          Vec<T> sum = load(total + channel), square = load(total + s.c + channel);
          for (const auto& value : values) {
            store(out + (image * s.pixels + first + p + (&value - values)) * s.c + channel, value[v]);
            const Vec<T> difference = value[v] - origin;
            sum += difference;
            square += difference * difference;
          }
          store<T>(total + channel, sum);
          store<T>(total + s.c + channel, square);
        }
      });
      for (int64_t k = 0; k < 2 * s.c; ++k) sums[task * 2 * s.c + k] += total[k];
    }
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

// What c and tap must be multiples of.
extern "C" int pmrb_channel_multiple() { return WIDTH<COMPUTED>; }

extern "C" int pmrb_taps(const STORED* const* maps, const Layer<const COMPUTED>* layers, STORED* out,
                         COMPUTED* variance, COMPUTED* mean, const TapSizes* sizes) {
  return status_of([&] { taps<STORED, COMPUTED>(maps, layers, out, variance, mean, *sizes); });
}
