// The CFFB of KRGN, forward and backward, and the mean and variance of each channel, all in one pass over memory.
// `../fused.py` builds this file, calls it and says what it computes. It needs a C++17 compiler with OpenMP and vector
// extensions (GCC, Clang), and nothing of torch.
//
// Feature maps are stored in type S and computed in type T: float and double in themselves, bfloat16 in float. Parameters
// and what lies between two passes over memory are of type T.
//
// Tensors are (n, h, w, c) in memory. A "chunk" is as many channels as one vector register holds; the last chunk of a
// number of channels that is no multiple of that overlaps the one before, and computes the same values again.
#include "vectors.h"

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

namespace {

// Rows of a band whose parameter gradients are summed by themselves: fixed, so that the sums, and with them every bit
// of a training run, do not depend on the number of threads.
constexpr int64_t BAND = 32;

// Bytes of rows that a chain keeps: so many that they stay in the second-level cache beside what passes through.
inline int64_t kept_bytes() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const int64_t cache = sysconf(_SC_LEVEL2_CACHE_SIZE);  // 0 or -1 where nobody knows
#else
  constexpr int64_t cache = 0;
#endif
  return std::clamp<int64_t>(cache, 256 << 10, 2 << 20) / 8 * 5;
}

struct Sizes {
  int64_t n, h, w, c;  // of the input and output
  int64_t rate[2];     // dilations
  int64_t row() const { return w * c; }
};

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

// Three rows of one chunk, `rate` rows apart; a row beyond the image is a row of zeros, and so are the columns beside it.
template <typename T>
struct Rows {
  const T* row[3];
  int64_t rate;

  // Column k - 1 of those that a group of pixels needs, where the group begins at pixel x and lies `rate` apart.
  Vec<T> at(int i, int64_t x, int k) const { return load(row[i] + (x + (k - 1) * rate) * Vector<T>::lanes); }
};

// `kept(from)` is where column 0 of row `from` lies.
template <typename T, typename Kept>
inline Rows<T> rows_around(int64_t row, int64_t rate, const T* zeros, const Sizes& s, const Kept& kept) {
  Rows<T> rows{{}, rate};
  for (int i = 0; i < 3; ++i) {
    const int64_t from = row + (i - 1) * rate;
    rows.row[i] = from < 0 || from >= s.h ? zeros : kept(from);
  }
  return rows;
}

// Pixels of a group. They are as far apart as the taps, so that each value that is loaded serves three of them, and
// each weight, kept in a register, all of them.
constexpr int P = 4;

// Calls work(x, beyond) for groups x, x + rate, ... that hold every pixel from `begin` to `end` once; `beyond` is
// std::true_type if some of a group's lie beyond `end`.
template <typename Work>
inline void groups(int64_t begin, int64_t end, int64_t rate, const Work& work) {
  for (int64_t first = begin; first < std::min(begin + rate, end); ++first)
    for (int64_t x = first; x < end; x += P * rate)
      if (x + (P - 1) * rate < end)
        work(x, std::false_type{});
      else
        work(x, std::true_type{});
}

template <typename T, int M>
inline __attribute__((always_inline)) void convolve(const Branch<T, M>& branch, const Rows<T>& rows, int64_t x,
                                                    Vec<T> (&out)[P]) {
  for (int p = 0; p < P; ++p) out[p] = branch.bias;
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i)
#pragma GCC unroll 10
    for (int k = 0; k < P + 2; ++k) {
      const Vec<T> value = rows.at(i, x, k);
#pragma GCC unroll 3
      for (int j = 0; j < 3; ++j)
        if (k - j >= 0 && k - j < P) {
          out[k - j] += value * branch.weight[3 * i + j][0];
          if constexpr (M == 2) out[k - j] += exchanged<T>(value) * branch.weight[3 * i + j][1];
        }
    }
}

// One row of one chunk of a CFFB's output, columns `begin` to `end`. put(column, value) takes each value. `part` holds
// the dilated branch meanwhile.
template <typename T, int M, typename Put>
inline void cffb_row(const Chunk<T, M>& chunk, const Rows<T>& near_rows, const Rows<T>& far_rows, int64_t begin,
                     int64_t end, T* part, const Put& put) {
  constexpr int lanes = Vector<T>::lanes;
  const Branch<T, M> near = chunk.branch[0], far = chunk.branch[1];  // copies stay in registers
  groups(begin, end, far_rows.rate, [&](int64_t column, auto beyond) {
    Vec<T> sums[P];
    convolve(far, far_rows, column, sums);
    for (int p = 0; p < P; ++p) {
      const int64_t at = column + p * far_rows.rate;
      if (decltype(beyond)::value && at >= end) continue;
      store<T>(part + (at - begin) * lanes, prelu<T>(sums[p], far.slope));
    }
  });
  groups(begin, end, near_rows.rate, [&](int64_t column, auto beyond) {
    Vec<T> sums[P];
    convolve(near, near_rows, column, sums);
    for (int p = 0; p < P; ++p) {
      const int64_t at = column + p * near_rows.rate;
      if (decltype(beyond)::value && at >= end) continue;
      put(at, Vec<T>(prelu<T>(sums[p], near.slope) + load(part + (at - begin) * lanes)));
    }
  });
}

// The channels of a map are divided into lines of 64 bytes, of one or more chunks, because memory comes in them. Lines
// have nothing to do with one another.
template <typename S, typename T>
constexpr int64_t chunks_a_line = std::max<int64_t>(1, 64 / sizeof(S) / Vector<T>::lanes);

// `stages` CFFBs in a chain, each with its six parameters, plus `plus`. Row after row of a line of channels goes through
// all of them. The input and what lies between two CFFBs is kept in the cache, chunk by chunk, as many rows as the
// dilations reach. `outputs` are the maps of each CFFB's output; all but the last may be null, and are not written then.
// Images that are too wide for that are divided into
// strips, whose surroundings are computed again for the strip beside it, and images into bands of rows if there are more
// threads than lines.
template <typename S, typename T, int M>
void forward(const S* x, const T* const* parameters, int64_t stages, const S* plus, S* const* outputs, const Sizes& s) {
  constexpr int64_t lanes = Vector<T>::lanes, a_line = chunks_a_line<S, T>;
  if (s.n * s.h * s.w == 0) return;
  std::vector<std::vector<Chunk<T, M>>> all;
  for (int64_t k = 0; k < stages; ++k) all.push_back(chunks<false, T, M>(parameters + 6 * k, s));
  const int64_t n_chunks = all[0].size(), lines = (n_chunks + a_line - 1) / a_line;

  const int64_t reach = std::max(s.rate[0], s.rate[1]), ring = 2 * reach + 1, group = P * s.rate[1];
  // Columns that a stage computes on either side of a strip: at least those that later ones need, and whole groups.
  const auto halo = [&](int64_t k) { return (2 * (stages - 1 - k) * reach + group - 1) / group * group / 2; };
  const int64_t slack = halo(0) + (P + 1) * reach;
  const int64_t fitting = kept_bytes() / int64_t(a_line * stages * ring * lanes * sizeof(T)) - 2 * slack;
  const int64_t strips = (s.w + std::max(fitting, group) - 1) / std::max(fitting, group);
  const int64_t strip = ((s.w + strips - 1) / strips + group - 1) / group * group;
  const int64_t kept_row = (std::min(strip, s.w + group) + 2 * slack) * lanes;

  const int64_t threads = omp_get_max_threads(), wanted = (2 * threads + s.n * lines - 1) / (s.n * lines);
  const int64_t bands = threads == 1 ? 1 : std::max<int64_t>(1, std::min(wanted, s.h / (4 * stages * reach)));
  const int64_t for_chunk = stages * ring * kept_row, for_thread = a_line * for_chunk + kept_row;
  Zeros<T> buffers(threads * for_thread), zeros(kept_row);  // the largest first, which may be too large
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t task = 0; task < s.n * lines * bands; ++task) {
    const int64_t band = task % bands, first_chunk = task / bands % lines * a_line;
    const int64_t image = task / bands / lines * s.h * s.row();
    const int64_t top = s.h * band / bands, bottom = s.h * (band + 1) / bands;
    const int64_t last_chunk = std::min(first_chunk + a_line, n_chunks), before = (stages - 1) * reach;
    T* const buffer = buffers.data() + omp_get_thread_num() * for_thread;
    T* const part = buffer + a_line * for_chunk;
    for (int64_t left = 0; left < s.w; left += strip) {
      const int64_t right = std::min(left + strip, s.w);
      // Column 0 of row `row` of a stage's input; only the strip and its surroundings are there.
      const auto kept = [&](int64_t chunk, int64_t stage, int64_t row) {
        return buffer + (chunk - first_chunk) * for_chunk + (stage * ring + row % ring) * kept_row +
               (slack - left) * lanes;
      };
      const T* const zero_row = zeros.data() + (slack - left) * lanes;
      for (int64_t i = 0; i < (last_chunk - first_chunk) * stages * ring; ++i) {
        T* const row = buffer + i * kept_row + (slack - left) * lanes;
        if (left < slack) std::fill(row + (left - slack) * lanes, row, T(0));
        const int64_t end = left - slack + kept_row / lanes;
        if (end > s.w) std::fill(row + s.w * lanes, row + end * lanes, T(0));
      }
      const int64_t from = std::max<int64_t>(0, left - halo(0) - reach), to = std::min(s.w, right + halo(0) + reach);
      const auto keep = [&](int64_t row) {
        const S* const there = x + image + row * s.row();
        const int64_t below = row + 1 < s.h ? s.row() : 0;
        const int64_t first = all[0][first_chunk].start;
        for (int64_t q = first_chunk; q < last_chunk; ++q) {
          T* const into = kept(q, 0, row);
          const S* const chunk = there + all[0][q].start;
          for (int64_t column = from; column < to; ++column) {
            if (q == first_chunk) __builtin_prefetch(there + column * s.c + first + below, 0, 2);
            store<T>(into + column * lanes, load(chunk + column * s.c));
          }
        }
      };
      int64_t next = std::max<int64_t>(0, top - before - reach);  // row of the input to be kept
      for (int64_t step = top - before; step < bottom + before; ++step)
        for (int64_t k = 0; k < stages; ++k) {
          const int64_t row = step - k * reach, margin = (stages - 1 - k) * reach;
          if (row < std::max<int64_t>(0, top - margin) || row >= std::min(s.h, bottom + margin)) continue;
          for (; k == 0 && next <= std::min(row + reach, s.h - 1); ++next) keep(next);
          const int64_t begin = std::max<int64_t>(0, left - halo(k)), end = std::min(s.w, right + halo(k));
          for (int64_t q = first_chunk; q < last_chunk; ++q) {
            const auto input = [&](int64_t from) { return kept(q, k, from); };
            const Rows<T> near = rows_around<T>(row, s.rate[0], zero_row, s, input);
            const Rows<T> far = rows_around<T>(row, s.rate[1], zero_row, s, input);
            const int64_t at = image + row * s.row() + all[k][q].start;
            S* const out = outputs[k] ? outputs[k] + at : nullptr;
            if (k == stages - 1) {
              const S* const added = plus ? plus + at : nullptr;
              const int64_t below = row + 1 < s.h ? s.row() : 0;
              cffb_row(all[k][q], near, far, begin, end, part, [&](int64_t column, Vec<T> value) {
                __builtin_prefetch(out + column * s.c + below, 1, 2);  // for the next row
                store(out + column * s.c, added ? Vec<T>(value + load(added + column * s.c)) : value);
              });
            } else {
              T* const into = kept(q, k + 1, row);
              if (!out)  // nobody else sees the values: they need not be rounded
                cffb_row(all[k][q], near, far, begin, end, part, [&](int64_t column, Vec<T> value) {
                  store<T>(into + column * lanes, value);
                });
              else {
                const bool inside = row >= top && row < bottom;
                cffb_row(all[k][q], near, far, begin, end, part, [&](int64_t column, Vec<T> value) {
                  value = rounded<S>(value);
                  store<T>(into + column * lanes, value);
                  if (inside && column >= left && column < right) store(out + column * s.c, value);
                });
              }
            }
          }
        }
    }
  }
}

template <typename S, typename T, int M>
void backward(const S* x, const T* const* parameters, const S* grad_y, S* grad_x, T* const* grads, const Sizes& s) {
  constexpr int64_t lanes = Vector<T>::lanes, a_line = chunks_a_line<S, T>;
  const auto all = chunks<false, T, M>(parameters, s), back = chunks<true, T, M>(parameters, s);
  const int64_t n_chunks = all.size(), lines = (n_chunks + a_line - 1) / a_line;
  const int64_t reach = std::max(s.rate[0], s.rate[1]), ring = 2 * reach + 1;
  const int64_t bands = (s.h + BAND - 1) / BAND;
  // Sums of the parameters' gradients over each band, laid out like the parameters: added up in order at the end.
  std::vector<Chunk<T, M>> sums(s.n * bands * n_chunks);

  // The input, and the gradients of both convolutions' outputs, of one chunk, in the rows that a row of the input's
  // gradient needs: they never leave the cache. Row r lies in place r % ring, with zeros on both sides.
  const int64_t padded = (s.w + (P + 1) * reach) * lanes, for_thread = (3 * ring + 1) * padded;
  const int64_t threads = omp_get_max_threads();
  Zeros<T> buffers(threads * for_thread), zeros(padded);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t task = 0; task < s.n * bands * lines; ++task) {
    const int64_t band = task / lines, image = band / bands * s.h * s.row();
    const int64_t top = s.h * (band % bands) / bands, bottom = s.h * (band % bands + 1) / bands;
    const int64_t begin = std::max<int64_t>(0, top - reach), first_chunk = task % lines * a_line;
    T* const buffer = buffers.data() + omp_get_thread_num() * for_thread;
    T* const part = buffer + 3 * ring * padded;
    const T* const zero_row = zeros.data() + reach * lanes;
    for (int64_t q = first_chunk; q < std::min(first_chunk + a_line, n_chunks); ++q) {
      const auto kept = [&](int b, int64_t row) { return buffer + (b * ring + row % ring) * padded + reach * lanes; };
      const auto input = [&](int64_t row) { return kept(2, row); };
      const S* const there = x + image + all[q].start;
      const auto keep_input = [&](int64_t row) {
        const int64_t below = row + 1 < s.h ? s.row() : 0;  // what will be needed next is asked for now
        if (row >= 0 && row < s.h)
          for (int64_t column = 0; column < s.w; ++column) {
            const S* const from = there + row * s.row() + column * s.c;
            __builtin_prefetch(from + below, 0, 3);
            store<T>(kept(2, row) + column * lanes, load(from));
          }
      };
      for (int64_t row = begin - reach; row < begin + reach; ++row) keep_input(row);
      for (int64_t row = begin; row < bottom + reach; ++row) {
        keep_input(row + reach);
        const S* const grad_row = grad_y + image + row * s.row() + all[q].start;
        const int64_t below = row + 1 < s.h ? s.row() : 0;
        for (int b = 0; b < 2 && row < s.h; ++b) {
          const Branch<T, M> branch = all[q].branch[b];
          const Rows<T> rows = rows_around<T>(row, s.rate[b], zero_row, s, input);
          T* const kept_row = kept(b, row);
          Branch<T, M> sum = sums[band * n_chunks + q].branch[b];
          groups(0, s.w, s.rate[b], [&](int64_t column, auto beyond) {
            Vec<T> out[P], grad[P];
            convolve(branch, rows, column, out);
            for (int p = 0; p < P; ++p) {
              const int64_t at = column + p * s.rate[b];
              grad[p] = decltype(beyond)::value && at >= s.w ? Vec<T>{} : load(grad_row + at * s.c);
              if (b == 1) __builtin_prefetch(grad_row + at * s.c + below, 0, 3);
              sum.slope += out[p] > 0 ? Vec<T>{} : grad[p] * out[p];
              grad[p] = out[p] > 0 ? grad[p] : grad[p] * branch.slope;
              sum.bias += grad[p];
              if (!decltype(beyond)::value || at < s.w) store<T>(kept_row + at * lanes, grad[p]);
            }
#pragma GCC unroll 3
            for (int i = 0; i < 3; ++i)
#pragma GCC unroll 10
              for (int k = 0; k < P + 2; ++k) {
                const Vec<T> value = rows.at(i, column, k);
#pragma GCC unroll 3
                for (int j = 0; j < 3; ++j)
                  if (k - j >= 0 && k - j < P) {
                    sum.weight[3 * i + j][0] += grad[k - j] * value;
                    if constexpr (M == 2) sum.weight[3 * i + j][1] += grad[k - j] * exchanged<T>(value);
                  }
              }
          });
          // Rows around the band are computed for the gradient of its input, and counted in the band they belong to.
          if (row >= top && row < bottom) sums[band * n_chunks + q].branch[b] = sum;
        }
        const int64_t done = row - reach;  // the row of the input's gradient that has all it needs now
        if (done < top) continue;
        S* const grad_input = grad_x + image + done * s.row() + all[q].start;
        for (int b = 1; b >= 0; --b) {
          const Branch<T, M> branch = back[q].branch[b];
          const auto output = [&](int64_t from) { return kept(b, from); };
          const Rows<T> rows = rows_around<T>(done, s.rate[b], zero_row, s, output);
          groups(0, s.w, s.rate[b], [&](int64_t column, auto beyond) {
            Vec<T> out[P];
            convolve(branch, rows, column, out);
            for (int p = 0; p < P; ++p) {
              const int64_t at = column + p * s.rate[b];
              if (decltype(beyond)::value && at >= s.w) continue;
              if (b == 1)
                store<T>(part + at * lanes, out[p]);
              else
                store(grad_input + at * s.c, Vec<T>(out[p] + load(part + at * lanes)));
            }
          });
        }
      }
    }
  }

  for (int64_t q = 0; q < n_chunks; ++q)
    for (int b = 0; b < 2; ++b) {
      Branch<T, M> total{};
      for (int64_t band = 0; band < s.n * bands; ++band) {
        const Branch<T, M>& part = sums[band * n_chunks + q].branch[b];
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

// The functions that fused.py calls, for maps of type STORED and parameters of type COMPUTED, which its command line of
// the compiler defines. `parameters` and `grads`: weight (c, m, 3, 3), bias (c) and slope (c) of the first branch, then
// of the second; in the forward pass of each of `stages` CFFBs. `i`: n, h, w, c >= 16, channels a group m, both
// dilations. `plus` may be null, and all but the last of the `outputs`.
extern "C" int cffb_forward(const STORED* x, const COMPUTED* const* parameters, int64_t stages, const STORED* plus,
                            STORED* const* outputs, const int64_t* i) {
  const Sizes s{i[0], i[1], i[2], i[3], {i[5], i[6]}};
  return status_of([&] {
    i[4] == 1 ? forward<STORED, COMPUTED, 1>(x, parameters, stages, plus, outputs, s)
              : forward<STORED, COMPUTED, 2>(x, parameters, stages, plus, outputs, s);
  });
}

extern "C" int cffb_backward(const STORED* x, const COMPUTED* const* parameters, const STORED* grad_y, STORED* grad_x,
                             COMPUTED* const* grads, const int64_t* i) {
  const Sizes s{i[0], i[1], i[2], i[3], {i[5], i[6]}};
  return status_of([&] {
    i[4] == 1 ? backward<STORED, COMPUTED, 1>(x, parameters, grad_y, grad_x, grads, s)
              : backward<STORED, COMPUTED, 2>(x, parameters, grad_y, grad_x, grads, s);
  });
}

extern "C" int var_mean(const STORED* x, COMPUTED* variance, COMPUTED* mean, const int64_t* i) {
  const Sizes s{i[0], i[1], i[2], i[3], {1, 1}};
  return status_of([&] { var_mean<STORED, COMPUTED>(x, variance, mean, s); });
}
