// The CFFB of KRGN, forward and backward, each in one pass over memory. `../fused.py` builds this file, calls it and
// says what it computes. It needs a C++17 compiler with OpenMP and vector extensions (GCC, Clang), and nothing of torch.
//
// Tensors are (n, h, w, c) in memory. A "chunk" is as many channels as one vector register holds; the last chunk of a
// number of channels that is no multiple of that overlaps the one before, and computes the same values again.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include <omp.h>

namespace {

#if defined(__AVX512F__)
constexpr int REGISTER = 64;
#elif defined(__AVX__)
constexpr int REGISTER = 32;
#else
constexpr int REGISTER = 16;
#endif

// Rows of a band whose parameter gradients are summed by themselves: fixed, so that the sums, and with them every bit
// of a training run, do not depend on the number of threads.
constexpr int64_t BAND = 32;
// Bytes of a row that are worked on before the row below: the rows that both dilations need stay in the cache.
constexpr int64_t STRIP = 20480;

struct Sizes {
  int64_t n, h, w, c;  // of the input and output
  int64_t rate[2];     // dilations
  int64_t row() const { return w * c; }
};

template <typename T>
struct Vector {
  static constexpr int lanes = REGISTER / sizeof(T);
  typedef T type __attribute__((vector_size(REGISTER)));
};
template <typename T>
using Vec = typename Vector<T>::type;

template <typename T>
inline Vec<T> load(const T* from) {
  Vec<T> value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <typename T>
inline void store(T* to, Vec<T> value) {
  std::memcpy(to, &value, sizeof value);
}

// Neighbouring channels exchanged: with two channels a group, the group's other one.
template <typename T>
inline Vec<T> exchanged(Vec<T> v) {
  if constexpr (Vector<T>::lanes == 16)
    return __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
  else if constexpr (Vector<T>::lanes == 8)
    return __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6);
  else if constexpr (Vector<T>::lanes == 4)
    return __builtin_shufflevector(v, v, 1, 0, 3, 2);
  else
    return __builtin_shufflevector(v, v, 1, 0);
}

// What one chunk of channels needs of the parameters. M is the number of channels a group, 1 or 2.
// weight[b][t][m] is branch b's weight at tap t from the channel itself (m = 0) or the group's other one (m = 1).
template <typename T, int M>
struct Chunk {
  int64_t start;  // its first channel
  Vec<T> weight[2][9][M], bias[2], slope[2];
};

template <typename T, int M>
std::vector<Chunk<T, M>> chunks(const T* const* parameters, const Sizes& s) {
  constexpr int lanes = Vector<T>::lanes;
  std::vector<Chunk<T, M>> all((s.c + lanes - 1) / lanes);
  for (size_t q = 0; q < all.size(); ++q) {
    all[q].start = std::min<int64_t>(q * lanes, s.c - lanes);
    for (int b = 0; b < 2; ++b)
      for (int lane = 0; lane < lanes; ++lane) {
        const int64_t channel = all[q].start + lane;
        all[q].bias[b][lane] = parameters[3 * b + 1][channel];
        all[q].slope[b][lane] = parameters[3 * b + 2][channel];
        for (int t = 0; t < 9; ++t)
          for (int m = 0; m < M; ++m)
            all[q].weight[b][t][m][lane] = parameters[3 * b][(channel * M + (channel + m) % M) * 9 + t];
      }
  }
  return all;
}

// The parameters with which a convolution's output gradient, convolved, is its input gradient.
template <typename T, int M>
std::vector<Chunk<T, M>> transposed(const T* const* parameters, const Sizes& s) {
  std::vector<Chunk<T, M>> all = chunks<T, M>(parameters, s);
  for (Chunk<T, M>& chunk : all)
    for (int b = 0; b < 2; ++b) {
      chunk.bias[b] = Vec<T>{};
      for (int t = 0; t < 9; ++t)
        for (int lane = 0; lane < Vector<T>::lanes; ++lane)
          for (int m = 0; m < M; ++m) {
            const int64_t channel = chunk.start + lane, from = channel / M * M + (channel + m) % M;
            chunk.weight[b][t][m][lane] = parameters[3 * b][(from * M + channel % M) * 9 + 8 - t];
          }
    }
  return all;
}

// Both convolutions at P neighbouring pixels of one chunk: each weight that is loaded serves all of them.
// `rows[b][i]` is the row of branch b's tap row i, a row of zeros beyond the edge; EDGE: columns may lie beyond it too.
template <int P, bool EDGE, typename T, int M>
inline __attribute__((always_inline)) void convolve(
    const Chunk<T, M>& chunk, const T* const (*rows)[3], int64_t x, const T* zeros, const Sizes& s, Vec<T> (*out)[P]) {
  for (int b = 0; b < 2; ++b) {
    for (int p = 0; p < P; ++p) out[b][p] = chunk.bias[b];
#pragma GCC unroll 9
    for (int t = 0; t < 9; ++t) {
      const int64_t column = x + (t % 3 - 1) * s.rate[b];
      const bool beyond = EDGE && (column < 0 || column >= s.w);
      const T* from = (beyond ? zeros : rows[b][t / 3] + column * s.c) + chunk.start;
      for (int p = 0; p < P; ++p) {
        const Vec<T> value = load(from + p * s.c);
        out[b][p] += value * chunk.weight[b][t][0];
        if constexpr (M == 2) out[b][p] += exchanged<T>(value) * chunk.weight[b][t][1];
      }
    }
  }
}

// Calls work(x, P, EDGE) so that every column from `begin` to `end` is done once, P at a time away from the edges.
template <int P, typename Work>
inline void along_row(int64_t begin, int64_t end, const Sizes& s, const Work& work) {
  const int64_t reach = std::max(s.rate[0], s.rate[1]);
  using One = std::integral_constant<int, 1>;
  int64_t x = begin;
  for (; x < std::min(reach, end); ++x) work(x, One{}, std::true_type{});
  for (; x + P <= std::min(end, s.w - reach); x += P) work(x, std::integral_constant<int, P>{}, std::false_type{});
  for (; x < end; ++x) work(x, One{}, std::true_type{});
}

template <typename T>
inline Vec<T> prelu(Vec<T> value, Vec<T> slope) {
  return value > 0 ? value : value * slope;
}

template <typename T, int M>
void forward(const T* x, const T* const* parameters, const T* plus, T* y, const Sizes& s) {
  constexpr int P = M == 1 ? 4 : 6;
  const auto all = chunks<T, M>(parameters, s);
  const std::vector<T> zeros(s.row());
  const int64_t strip = std::max<int64_t>(16, STRIP / (s.c * sizeof(T)));
#pragma omp parallel
  {
    const int64_t rows_in_all = s.n * s.h, thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const int64_t first = rows_in_all * thread / threads, last = rows_in_all * (thread + 1) / threads;
    for (int64_t left = 0; left < s.w; left += strip)
      for (int64_t row = first; row < last; ++row) {
        const int64_t at = row % s.h;
        const T* rows[2][3];
        for (int b = 0; b < 2; ++b)
          for (int i = 0; i < 3; ++i) {
            const int64_t shift = (i - 1) * s.rate[b];
            rows[b][i] = at + shift < 0 || at + shift >= s.h ? zeros.data() : x + (row + shift) * s.row();
          }
        // The row that the next one needs and that is not in the cache yet.
        const T* ahead = x + std::min(row + std::max(s.rate[0], s.rate[1]) + 1, rows_in_all - 1) * s.row();
        for (const Chunk<T, M>& chunk : all)
          along_row<P>(left, std::min(left + strip, s.w), s, [&](int64_t column, auto pixels, auto edge) {
            constexpr int N = decltype(pixels)::value;
            for (int p = 0; p < N; ++p) __builtin_prefetch(ahead + (column + p) * s.c + chunk.start, 0, 2);
            Vec<T> out[2][N];
            convolve<N, decltype(edge)::value>(chunk, rows, column, zeros.data(), s, out);
            for (int p = 0; p < N; ++p) {
              const int64_t pixel = row * s.row() + (column + p) * s.c + chunk.start;
              Vec<T> sum = prelu<T>(out[0][p], chunk.slope[0]) + prelu<T>(out[1][p], chunk.slope[1]);
              if (plus) sum += load(plus + pixel);
              store<T>(y + pixel, sum);
            }
          });
      }
  }
}

// Sums of one chunk's parameter gradients, laid out like `Chunk`.
template <typename T, int M>
struct Sums {
  Vec<T> weight[2][9][M], bias[2], slope[2];
};

template <typename T, int M>
void backward(const T* x, const T* const* parameters, const T* grad_y, T* grad_x, T* const* grads, const Sizes& s) {
  constexpr int P = M == 1 ? 4 : 6;
  const auto all = chunks<T, M>(parameters, s), back = transposed<T, M>(parameters, s);
  const std::vector<T> zeros(s.row());
  const int64_t reach = std::max(s.rate[0], s.rate[1]), ring = 2 * reach + 1;
  const int64_t bands = (s.h + BAND - 1) / BAND;
  std::vector<Sums<T, M>> sums(s.n * bands * all.size());  // of each band: added up in order at the end

#pragma omp parallel
  {
    // The gradients of both convolutions' outputs, in the rows that a row of the input's gradient needs: they never
    // leave the cache. Row r lies in place r % ring.
    std::vector<T> buffer(2 * ring * s.row());
    const auto kept = [&](int b, int64_t row) { return buffer.data() + (b * ring + row % ring) * s.row(); };
#pragma omp for schedule(dynamic)
    for (int64_t band = 0; band < s.n * bands; ++band) {
      const int64_t image = band / bands * s.h * s.row();
      const int64_t top = s.h * (band % bands) / bands, bottom = s.h * (band % bands + 1) / bands;
      for (int64_t row = std::max<int64_t>(0, top - reach); row < bottom + reach; ++row) {
        const T* rows[2][3];
        if (row < s.h) {
          for (int b = 0; b < 2; ++b)
            for (int i = 0; i < 3; ++i) {
              const int64_t from = row + (i - 1) * s.rate[b];
              rows[b][i] = from < 0 || from >= s.h ? zeros.data() : x + image + from * s.row();
            }
          // Rows around the band are computed for the gradient of its input, and counted where they belong.
          const bool counted = row >= top && row < bottom;
          for (size_t q = 0; q < all.size(); ++q) {
            const Chunk<T, M>& chunk = all[q];
            Sums<T, M> sum = sums[band * all.size() + q];
            along_row<P>(0, s.w, s, [&](int64_t column, auto pixels, auto edge) {
              constexpr int N = decltype(pixels)::value;
              Vec<T> out[2][N];
              convolve<N, decltype(edge)::value>(chunk, rows, column, zeros.data(), s, out);
              for (int b = 0; b < 2; ++b)
                for (int p = 0; p < N; ++p) {
                  const int64_t pixel = (column + p) * s.c + chunk.start;
                  const Vec<T> grad = load(grad_y + image + row * s.row() + pixel);
                  const Vec<T> before = out[b][p] > 0 ? grad : grad * chunk.slope[b];
                  sum.slope[b] += out[b][p] > 0 ? Vec<T>{} : grad * out[b][p];
                  sum.bias[b] += before;
                  store<T>(kept(b, row) + pixel, before);
                }
            });
            if (!counted) continue;
            for (int b = 0; b < 2; ++b)
              along_row<1>(0, s.w, s, [&](int64_t column, auto, auto edge) {
                const Vec<T> grad = load(kept(b, row) + column * s.c + chunk.start);
#pragma GCC unroll 9
                for (int t = 0; t < 9; ++t) {
                  const int64_t source = column + (t % 3 - 1) * s.rate[b];
                  const bool beyond = decltype(edge)::value && (source < 0 || source >= s.w);
                  const Vec<T> value = load((beyond ? zeros.data() : rows[b][t / 3] + source * s.c) + chunk.start);
                  sum.weight[b][t][0] += grad * value;
                  if constexpr (M == 2) sum.weight[b][t][1] += grad * exchanged<T>(value);
                }
              });
            sums[band * all.size() + q] = sum;
          }
        }
        const int64_t done = row - reach;  // the row of the input's gradient that has all it needs now
        if (done < top) continue;
        for (int b = 0; b < 2; ++b)
          for (int i = 0; i < 3; ++i) {
            const int64_t from = done + (i - 1) * s.rate[b];
            rows[b][i] = from < 0 || from >= s.h ? zeros.data() : kept(b, from);
          }
        for (const Chunk<T, M>& chunk : back)
          along_row<P>(0, s.w, s, [&](int64_t column, auto pixels, auto edge) {
            constexpr int N = decltype(pixels)::value;
            Vec<T> out[2][N];
            convolve<N, decltype(edge)::value>(chunk, rows, column, zeros.data(), s, out);
            for (int p = 0; p < N; ++p)
              store<T>(grad_x + image + done * s.row() + (column + p) * s.c + chunk.start, out[0][p] + out[1][p]);
          });
      }
    }
  }

  for (size_t q = 0; q < all.size(); ++q) {
    Sums<T, M> total{};
    for (int64_t band = 0; band < s.n * bands; ++band) {
      const Sums<T, M>& part = sums[band * all.size() + q];
      for (int b = 0; b < 2; ++b) {
        total.bias[b] += part.bias[b];
        total.slope[b] += part.slope[b];
        for (int t = 0; t < 9; ++t)
          for (int m = 0; m < M; ++m) total.weight[b][t][m] += part.weight[b][t][m];
      }
    }
    for (int b = 0; b < 2; ++b)
      for (int lane = 0; lane < Vector<T>::lanes; ++lane) {
        const int64_t channel = all[q].start + lane;
        grads[3 * b + 1][channel] = total.bias[b][lane];
        grads[3 * b + 2][channel] = total.slope[b][lane];
        for (int t = 0; t < 9; ++t)
          for (int m = 0; m < M; ++m)
            grads[3 * b][(channel * M + (channel + m) % M) * 9 + t] = total.weight[b][t][m][lane];
      }
  }
}

}  // namespace

// The functions that fused.py calls. `parameters` and `grads`: weight (c, m, 3, 3), bias (c) and slope (c) of the first
// branch, then of the second. `sizes`: n, h, w, c >= 16, channels a group m, both dilations. `plus` may be null.
#define FUNCTIONS(NAME, T)                                                                                            \
  extern "C" void cffb_forward_##NAME(const T* x, const T* const* parameters, const T* plus, T* y, const int64_t* i) { \
    const Sizes s{i[0], i[1], i[2], i[3], {i[5], i[6]}};                                                              \
    i[4] == 1 ? forward<T, 1>(x, parameters, plus, y, s) : forward<T, 2>(x, parameters, plus, y, s);                  \
  }                                                                                                                   \
  extern "C" void cffb_backward_##NAME(const T* x, const T* const* parameters, const T* grad_y, T* grad_x,            \
                                       T* const* grads, const int64_t* i) {                                           \
    const Sizes s{i[0], i[1], i[2], i[3], {i[5], i[6]}};                                                              \
    i[4] == 1 ? backward<T, 1>(x, parameters, grad_y, grad_x, grads, s)                                               \
              : backward<T, 2>(x, parameters, grad_y, grad_x, grads, s);                                              \
  }

FUNCTIONS(float32, float)
FUNCTIONS(float64, double)
