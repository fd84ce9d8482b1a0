// The CFFB of KRGN, forward and backward, and the mean and variance of each channel, all in one pass over memory.
// `../fused.py` builds this file, calls it and says what it computes. It needs a C++17 compiler with OpenMP and vector
// extensions (GCC, Clang), and nothing of torch.
//
// Feature maps are stored in type S and computed in type T: float and double in themselves, bfloat16 in float. Parameters
// and what lies between two passes over memory are of type T.
//
// Tensors are (n, h, w, c) in memory. A "chunk" is as many channels as one vector register holds; the last chunk of a
// number of channels that is no multiple of that overlaps the one before, and computes the same values again.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
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
constexpr int64_t CHAIN_STRIP = 40960;  // of a chain, which computes the surroundings of each strip as well

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

// The upper half of a float.
struct bfloat16 {
  uint16_t bits;
};
typedef uint16_t Half __attribute__((vector_size(REGISTER / 2)));
typedef uint32_t Bits __attribute__((vector_size(REGISTER)));

inline Vec<float> load(const bfloat16* from) {
  Half half;
  std::memcpy(&half, from, sizeof half);
  const Bits bits = __builtin_convertvector(half, Bits) << 16;
  Vec<float> value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Rounds to the nearest, a tie to even; a denormal becomes 0 and a NaN a quiet one, as in VCVTNEPS2BF16.
inline void store(bfloat16* to, Vec<float> value) {
#if defined(__AVX512BF16__) && defined(__AVX512F__)
  const __m256bh half = _mm512_cvtneps_pbh((__m512)value);
#else
  Bits bits;
  std::memcpy(&bits, &value, sizeof bits);
  const Bits magnitude = bits & 0x7fffffff;
  const Bits rounded = bits + 0x7fff + (bits >> 16 & 1);
  const Bits not_a_number = bits | 0x400000, zero = bits & 0x80000000;
  const Bits upper = magnitude > 0x7f800000 ? not_a_number : magnitude < 0x800000 ? zero : rounded;
  const Half half = __builtin_convertvector(upper >> 16, Half);
#endif
  std::memcpy(to, &half, sizeof half);
}

// `count` values, at least as many as a register holds, in the type of the arithmetic.
template <typename S, typename T>
inline void widen(const S* from, int64_t count, T* to) {
  constexpr int64_t lanes = Vector<T>::lanes;
  if constexpr (std::is_same_v<S, T>)
    std::memcpy(to, from, count * sizeof(T));
  else
    for (int64_t i = 0; i < count; i += lanes) {
      const int64_t at = std::min(i, count - lanes);
      store<T>(to + at, load(from + at));
    }
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

// One branch's parameters for one chunk of channels. M is the number of channels a group, 1 or 2.
// weight[t][m] is the weight of tap t for the channel itself (m = 0) or for the group's other one (m = 1).
template <typename T, int M>
struct Branch {
  Vec<T> weight[9][M], bias, slope;
};

template <typename T, int M>
struct Chunk {
  int64_t start;  // its first channel
  Branch<T, M> branch[2];
};

// The parameters, by chunks. BACK: those with which the gradients of both convolutions' outputs, convolved, are the
// gradient of their input.
template <bool BACK, typename T, int M>
std::vector<Chunk<T, M>> chunks(const T* const* parameters, const Sizes& s) {
  constexpr int lanes = Vector<T>::lanes;
  std::vector<Chunk<T, M>> all((s.c + lanes - 1) / lanes);
  for (size_t q = 0; q < all.size(); ++q) {
    all[q].start = std::min<int64_t>(q * lanes, s.c - lanes);
    for (int b = 0; b < 2; ++b)
      for (int lane = 0; lane < lanes; ++lane) {
        Branch<T, M>& branch = all[q].branch[b];
        const int64_t channel = all[q].start + lane;
        branch.bias[lane] = BACK ? 0 : parameters[3 * b + 1][channel];
        branch.slope[lane] = parameters[3 * b + 2][channel];
        for (int m = 0; m < M; ++m) {
          const int64_t other = channel / M * M + (channel + m) % M;
          const T* kernel = parameters[3 * b] + 9 * (BACK ? other * M + channel % M : channel * M + other % M);
          for (int t = 0; t < 9; ++t) branch.weight[t][m][lane] = kernel[BACK ? 8 - t : t];
        }
      }
  }
  return all;
}

// Three rows of one chunk of an image, `rate` rows apart; a row beyond the edge is a row of zeros.
template <typename T>
struct Rows {
  const T* row[3];
  const T* zeros;
  int64_t rate, step, width;  // dilation, elements from a pixel to the next, pixels

  // Column k - 1 of those that a group of pixels needs, where the group begins at pixel x and lies `rate` apart.
  template <bool EDGE>
  Vec<T> at(int i, int64_t x, int k) const {
    const int64_t column = x + (k - 1) * rate;
    if (EDGE && (column < 0 || column >= width)) return load(zeros);
    return load(row[i] + column * step);
  }
};

// `image(from)` is where row `from` of the chunk begins.
template <typename T, typename Image>
inline Rows<T> rows_around(int64_t row, int64_t rate, const T* zeros, const Sizes& s, const Image& image) {
  Rows<T> rows{{}, zeros, rate, s.c, s.w};
  for (int i = 0; i < 3; ++i) {
    const int64_t from = row + (i - 1) * rate;
    rows.row[i] = from < 0 || from >= s.h ? zeros : image(from);
  }
  return rows;
}

// Pixels of a group. They are as far apart as the taps, so that each value that is loaded serves three of them, and
// each weight, kept in a register, all of them.
constexpr int P = 4;

// Calls work(x, edge) for groups x, x + rate, ... that hold every pixel from `begin` to `end` once, and perhaps some
// beyond `end`; `edge` is std::true_type if so, and, where rows are not padded, if a column that they need lies beyond
// an edge of the image.
template <bool PADDED, typename Work>
inline void groups(int64_t begin, int64_t end, int64_t rate, int64_t width, const Work& work) {
  for (int64_t first = begin; first < std::min(begin + rate, end); ++first)
    for (int64_t x = first; x < end; x += P * rate)
      if ((PADDED || (x >= rate && x + P * rate < width)) && x + (P - 1) * rate < end)
        work(x, std::false_type{});
      else
        work(x, std::true_type{});
}

template <bool EDGE, typename T, int M>
inline __attribute__((always_inline)) void convolve(const Branch<T, M>& branch, const Rows<T>& rows, int64_t x,
                                                    Vec<T> (&out)[P]) {
  for (int p = 0; p < P; ++p) out[p] = branch.bias;
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i)
#pragma GCC unroll 10
    for (int k = 0; k < P + 2; ++k) {
      const Vec<T> value = rows.template at<EDGE>(i, x, k);
#pragma GCC unroll 3
      for (int j = 0; j < 3; ++j)
        if (k - j >= 0 && k - j < P) {
          out[k - j] += value * branch.weight[3 * i + j][0];
          if constexpr (M == 2) out[k - j] += exchanged<T>(value) * branch.weight[3 * i + j][1];
        }
    }
}

template <typename T>
inline Vec<T> prelu(Vec<T> value, Vec<T> slope) {
  return value > 0 ? value : value * slope;
}

// One row of a CFFB's output, columns `begin` to `end`. `input(from)` is where row `from` of the image begins, column 0
// and channel 0; `out` and `plus`, which may be null, likewise for this row. What lies at `next_in` and `next_out`, if
// they are not null, will be needed for the next row, and is fetched. `part` holds a branch's part meanwhile.
template <typename T, int M, typename Input, typename S>
inline void cffb_row(const std::vector<Chunk<T, M>>& chunks, int64_t row, int64_t begin, int64_t end, const Sizes& s,
                     const T* zeros, T* part, const Input& input, S* out, const S* plus, const T* next_in,
                     const S* next_out) {
  constexpr int lanes = Vector<T>::lanes;
  for (const Chunk<T, M>& chunk : chunks) {
    const auto from_chunk = [&](int64_t from) { return input(from) + chunk.start; };
    const Branch<T, M> near = chunk.branch[0], far = chunk.branch[1];  // copies stay in registers
    const Rows<T> near_rows = rows_around<T>(row, s.rate[0], zeros, s, from_chunk);
    const Rows<T> far_rows = rows_around<T>(row, s.rate[1], zeros, s, from_chunk);
    groups<false>(begin, end, s.rate[1], s.w, [&](int64_t column, auto edge) {
      Vec<T> sums[P];
      convolve<decltype(edge)::value>(far, far_rows, column, sums);
      for (int p = 0; p < P; ++p) {
        const int64_t at = column + p * s.rate[1];
        if (decltype(edge)::value && at >= end) continue;
        store<T>(part + (at - begin) * lanes, prelu<T>(sums[p], far.slope));
      }
    });
    groups<false>(begin, end, s.rate[0], s.w, [&](int64_t column, auto edge) {
      Vec<T> sums[P];
      convolve<decltype(edge)::value>(near, near_rows, column, sums);
      for (int p = 0; p < P; ++p) {
        const int64_t at = column + p * s.rate[0], place = at * s.c + chunk.start;
        if (decltype(edge)::value && at >= end) continue;
        if (next_in) __builtin_prefetch(next_in + place, 0, 2);
        if (next_out) __builtin_prefetch(next_out + place, 1, 2);
        Vec<T> sum = prelu<T>(sums[p], near.slope) + load(part + (at - begin) * lanes);
        if (plus) sum += load(plus + place);
        store(out + place, sum);
      }
    });
  }
}

// `stages` CFFBs in a chain, each with its six parameters, plus `plus`. Row after row goes through all of them: what
// lies between two CFFBs is kept in the cache, as many rows as the dilations reach, and never written to memory. A
// strip's neighbourhood is computed again for the strip beside it.
template <typename S, typename T, int M>
void forward(const S* x, const T* const* parameters, int64_t stages, const S* plus, S* y, const Sizes& s) {
  constexpr bool widens = !std::is_same_v<S, T>;  // then the first CFFB's input is kept too, once for all its taps
  std::vector<std::vector<Chunk<T, M>>> all;
  for (int64_t k = 0; k < stages; ++k) all.push_back(chunks<false, T, M>(parameters + 6 * k, s));
  const std::vector<T> zeros(s.row());
  const int64_t reach = std::max(s.rate[0], s.rate[1]), ring = 2 * reach + 1, group = P * s.rate[1];
  const int64_t budget = stages == 1 ? STRIP : CHAIN_STRIP, rings = stages - 1 + widens;
  const int64_t strip = std::max<int64_t>(1, budget / (s.c * sizeof(T)) / group) * group;
  // Columns that a stage computes on either side of a strip: at least those that later ones need, and whole groups.
  const auto halo = [&](int64_t k) { return (2 * (stages - 1 - k) * reach + group - 1) / group * group / 2; };
  const int64_t slack = halo(0) + (P + 1) * reach, kept_row = (strip + 2 * slack) * s.c;
#pragma omp parallel
  {
    std::vector<T> part((strip + 2 * halo(0)) * Vector<T>::lanes), buffer(rings * ring * kept_row);
    const int64_t rows_in_all = s.n * s.h, thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const int64_t first = rows_in_all * thread / threads, last = rows_in_all * (thread + 1) / threads;
    for (int64_t left = 0; left < s.w; left += strip) {
      const int64_t right = std::min(left + strip, s.w);
      // Where row `row` of a stage's input is kept; only the strip and its surroundings are there.
      const auto kept = [&](int64_t stage, int64_t row) {
        return buffer.data() + ((stage - !widens) * ring + row % ring) * kept_row + (slack - left) * s.c;
      };
      for (int64_t begun = first, bottom; begun < last; begun += bottom - begun % s.h) {
        const int64_t top = begun % s.h, image = (begun - top) * s.row();
        bottom = std::min(s.h, top + last - begun);
        const int64_t before = (stages - 1) * reach;
        int64_t widened = std::max<int64_t>(0, std::max<int64_t>(0, top - before) - reach);  // rows that are kept
        for (int64_t step = top - before; step < bottom + before; ++step)
          for (int64_t k = 0; k < stages; ++k) {
            const int64_t row = step - k * reach, margin = (stages - 1 - k) * reach;
            if (row < std::max<int64_t>(0, top - margin) || row >= std::min(s.h, bottom + margin)) continue;
            const int64_t begin = std::max<int64_t>(0, left - halo(k)), end = std::min(s.w, right + halo(k));
            const int64_t at = image + row * s.row();
            const T* next_in = nullptr;
            if constexpr (widens) {
              const int64_t from = std::max<int64_t>(0, begin - reach), to = std::min(s.w, end + reach);
              for (; k == 0 && widened <= std::min(row + reach, s.h - 1); ++widened)
                widen(x + image + widened * s.row() + from * s.c, (to - from) * s.c, kept(0, widened) + from * s.c);
            } else if (k == 0 && row + reach + 1 < s.h) {
              next_in = x + at + (reach + 1) * s.row();
            }
            const auto input = [&](int64_t from) -> const T* {
              if constexpr (!widens)
                if (k == 0) return x + image + from * s.row();
              return kept(k, from);
            };
            if (k == stages - 1)
              cffb_row<T, M>(all[k], row, begin, end, s, zeros.data(), part.data(), input, y + at,
                             plus ? plus + at : nullptr, next_in, row + 1 < s.h ? y + at + s.row() : nullptr);
            else
              cffb_row<T, M, decltype(input), T>(all[k], row, begin, end, s, zeros.data(), part.data(), input,
                                                 kept(k + 1, row), nullptr, next_in, nullptr);
          }
      }
    }
  }
}

template <typename S, typename T, int M>
void backward(const S* x, const T* const* parameters, const S* grad_y, S* grad_x, T* const* grads, const Sizes& s) {
  constexpr int lanes = Vector<T>::lanes;
  const auto all = chunks<false, T, M>(parameters, s), back = chunks<true, T, M>(parameters, s);
  const int64_t reach = std::max(s.rate[0], s.rate[1]), ring = 2 * reach + 1;
  const int64_t bands = (s.h + BAND - 1) / BAND;
  // Sums of the parameters' gradients over each band, laid out like the parameters: added up in order at the end.
  std::vector<Chunk<T, M>> sums(s.n * bands * all.size());

  // Rows are kept with zeros around them, as wide as the groups of pixels reach: patches are small, and much of them
  // lies beside an edge.
  const int64_t padded = s.row() + (P + 1) * reach * s.c;
  const std::vector<T> zeros(padded);
#pragma omp parallel
  {
    // The input, and the gradients of both convolutions' outputs, in the rows that a row of the input's gradient needs:
    // they never leave the cache. Row r lies in place r % ring.
    std::vector<T> buffer(3 * ring * padded), parts(s.w * lanes);
    T* const part = parts.data();
    const auto kept = [&](int b, int64_t row) { return &buffer[(b * ring + row % ring) * padded + reach * s.c]; };
    const auto keep_input = [&](int64_t image, int64_t row) {
      if (row >= 0 && row < s.h) widen(x + image + row * s.row(), s.row(), kept(2, row));
    };
#pragma omp for schedule(dynamic)
    for (int64_t band = 0; band < s.n * bands; ++band) {
      const int64_t image = band / bands * s.h * s.row();
      const int64_t top = s.h * (band % bands) / bands, bottom = s.h * (band % bands + 1) / bands;
      const int64_t begin = std::max<int64_t>(0, top - reach);
      for (int64_t row = begin - reach; row < begin + reach; ++row) keep_input(image, row);
      for (int64_t row = begin; row < bottom + reach; ++row) {
        keep_input(image, row + reach);
        for (size_t q = 0; q < all.size() && row < s.h; ++q) {
          const int64_t start = all[q].start;
          const auto input = [&](int64_t from) { return kept(2, from) + start; };
          const S* grad_row = grad_y + image + row * s.row() + start;
          for (int b = 0; b < 2; ++b) {
            const Branch<T, M> branch = all[q].branch[b];
            const Rows<T> rows = rows_around<T>(row, s.rate[b], &zeros[reach * s.c], s, input);
            T* const kept_row = kept(b, row) + start;
            Branch<T, M> sum = sums[band * all.size() + q].branch[b];
            groups<true>(0, s.w, s.rate[b], s.w, [&](int64_t column, auto beyond) {
              Vec<T> out[P], grad[P];
              convolve<false>(branch, rows, column, out);
              for (int p = 0; p < P; ++p) {
                const int64_t at = column + p * s.rate[b];
                grad[p] = decltype(beyond)::value && at >= s.w ? Vec<T>{} : load(grad_row + at * s.c);
                sum.slope += out[p] > 0 ? Vec<T>{} : grad[p] * out[p];
                grad[p] = out[p] > 0 ? grad[p] : grad[p] * branch.slope;
                sum.bias += grad[p];
                if (!decltype(beyond)::value || at < s.w) store<T>(kept_row + at * s.c, grad[p]);
              }
#pragma GCC unroll 3
              for (int i = 0; i < 3; ++i)
#pragma GCC unroll 10
                for (int k = 0; k < P + 2; ++k) {
                  const Vec<T> value = rows.template at<false>(i, column, k);
#pragma GCC unroll 3
                  for (int j = 0; j < 3; ++j)
                    if (k - j >= 0 && k - j < P) {
                      sum.weight[3 * i + j][0] += grad[k - j] * value;
                      if constexpr (M == 2) sum.weight[3 * i + j][1] += grad[k - j] * exchanged<T>(value);
                    }
                }
            });
            // Rows around the band are computed for the gradient of its input, and counted in the band they belong to.
            if (row >= top && row < bottom) sums[band * all.size() + q].branch[b] = sum;
          }
        }
        const int64_t done = row - reach;  // the row of the input's gradient that has all it needs now
        if (done < top) continue;
        for (const Chunk<T, M>& chunk : back) {
          S* const grad_row = grad_x + image + done * s.row() + chunk.start;
          for (int b = 1; b >= 0; --b) {
            const Branch<T, M> branch = chunk.branch[b];
            const auto output = [&](int64_t from) { return kept(b, from) + chunk.start; };
            const Rows<T> rows = rows_around<T>(done, s.rate[b], &zeros[reach * s.c], s, output);
            groups<true>(0, s.w, s.rate[b], s.w, [&](int64_t column, auto beyond) {
              Vec<T> out[P];
              convolve<false>(branch, rows, column, out);
              for (int p = 0; p < P; ++p) {
                const int64_t at = column + p * s.rate[b];
                if (decltype(beyond)::value && at >= s.w) continue;
                if (b == 1)
                  store<T>(part + at * lanes, out[p]);
                else
                  store(grad_row + at * s.c, Vec<T>(out[p] + load(part + at * lanes)));
              }
            });
          }
        }
      }
    }
  }

  for (size_t q = 0; q < all.size(); ++q)
    for (int b = 0; b < 2; ++b) {
      Branch<T, M> total{};
      for (int64_t band = 0; band < s.n * bands; ++band) {
        const Branch<T, M>& part = sums[band * all.size() + q].branch[b];
        total.bias += part.bias;
        total.slope += part.slope;
        for (int t = 0; t < 9; ++t)
          for (int m = 0; m < M; ++m) total.weight[t][m] += part.weight[t][m];
      }
      for (int lane = 0; lane < lanes; ++lane) {
        const int64_t channel = all[q].start + lane;
        grads[3 * b + 1][channel] = total.bias[lane];
        grads[3 * b + 2][channel] = total.slope[lane];
        for (int t = 0; t < 9; ++t)
          for (int m = 0; m < M; ++m)
            grads[3 * b][(channel * M + (channel + m) % M) * 9 + t] = total.weight[t][m][lane];
      }
    }
}

// Mean and variance (divided by h * w) of each channel of each image. Sums are taken of the differences to the first
// pixel, so that a small variance beside a large mean is not lost, row by row in T and over rows in double.
template <typename S, typename T>
void var_mean(const S* x, T* variance, T* mean, const Sizes& s) {
  constexpr int lanes = Vector<T>::lanes;
  std::vector<double> sums(s.n * s.h * s.c * 2);
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < s.n * s.h; ++row)
    for (int64_t c = 0; c < s.c; c += lanes) {
      const int64_t start = std::min(c, s.c - lanes);
      const Vec<T> first = load(x + row / s.h * s.h * s.row() + start);
      Vec<T> sum[4] = {}, square[4] = {};  // four of each, because an addition takes four cycles
      for (int64_t column = 0; column < s.w; ++column) {
        const Vec<T> value = load(x + row * s.row() + column * s.c + start) - first;
        sum[column % 4] += value;
        square[column % 4] += value * value;
      }
      for (int lane = 0; lane < lanes; ++lane)
        for (int k = 0; k < 4; ++k) {
          if (k == 0) sums[2 * (row * s.c + start + lane)] = sums[2 * (row * s.c + start + lane) + 1] = 0;
          sums[2 * (row * s.c + start + lane)] += sum[k][lane];
          sums[2 * (row * s.c + start + lane) + 1] += square[k][lane];
        }
    }
  for (int64_t image = 0; image < s.n; ++image)
    for (int64_t c = 0; c < s.c; ++c) {
      double sum = 0, square = 0;
      for (int64_t row = image * s.h; row < (image + 1) * s.h; ++row) {
        sum += sums[2 * (row * s.c + c)];
        square += sums[2 * (row * s.c + c) + 1];
      }
      const int64_t start = std::min(c, s.c - lanes);
      const double pixels = s.h * s.w, difference = sum / pixels;
      mean[image * s.c + c] = load(x + image * s.h * s.row() + start)[c - start] + difference;
      variance[image * s.c + c] = std::max(0.0, square / pixels - difference * difference);
    }
}

}  // namespace

// The functions that fused.py calls, for maps of type S and parameters of type T. `parameters` and `grads`: weight
// (c, m, 3, 3), bias (c) and slope (c) of the first branch, then of the second; in the forward pass of each of `stages`
// CFFBs. `sizes`: n, h, w, c >= 16, channels a group m, both dilations. `plus` may be null.
#define FUNCTIONS(NAME, S, T)                                                                                         \
  extern "C" void cffb_forward_##NAME(const S* x, const T* const* parameters, int64_t stages, const S* plus, S* y,    \
                                      const int64_t* i) {                                                             \
    const Sizes s{i[0], i[1], i[2], i[3], {i[5], i[6]}};                                                              \
    i[4] == 1 ? forward<S, T, 1>(x, parameters, stages, plus, y, s)                                                   \
              : forward<S, T, 2>(x, parameters, stages, plus, y, s);                                                  \
  }                                                                                                                   \
  extern "C" void cffb_backward_##NAME(const S* x, const T* const* parameters, const S* grad_y, S* grad_x,            \
                                       T* const* grads, const int64_t* i) {                                           \
    const Sizes s{i[0], i[1], i[2], i[3], {i[5], i[6]}};                                                              \
    i[4] == 1 ? backward<S, T, 1>(x, parameters, grad_y, grad_x, grads, s)                                            \
              : backward<S, T, 2>(x, parameters, grad_y, grad_x, grads, s);                                           \
  }                                                                                                                   \
  extern "C" void var_mean_##NAME(const S* x, T* variance, T* mean, const int64_t* i) {                               \
    var_mean<S, T>(x, variance, mean, {i[0], i[1], i[2], i[3], {1, 1}});                                              \
  }

FUNCTIONS(bfloat16, bfloat16, float)
FUNCTIONS(float32, float, float)
FUNCTIONS(float64, double, double)
