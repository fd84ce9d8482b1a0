// The CFFB of KRGN, forward and backward, and the mean and variance of each channel, all in one pass over memory.
// `library.py` builds this file, `cpu.py` calls it, and `layers.cffb` defines what it computes. It needs a C++17
// compiler with OpenMP and vector extensions (GCC, Clang), and nothing of torch.
//
// Feature maps are stored in type S and computed in type T: float and double as themselves, bfloat16 in float.
// Parameters and what lies between two passes over memory are of type T.
//
// Tensors are (n, h, w, c) in memory. A "chunk" is as many channels as one vector register holds. Where the number of
// channels is no multiple of that, the last chunk overlaps the one before it and computes the same values again.
#include "vectors.h"

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

namespace {

// The parameters' gradients are summed over bands of this many rows. The number is fixed, so that the sums, and with
// them every bit of a training run, do not depend on the number of threads.
constexpr int64_t BAND_ROWS = 32;

// Bytes of rows that a chain keeps: as many as stay in the second-level cache beside the data that streams through.
inline int64_t kept_bytes() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const int64_t cache = sysconf(_SC_LEVEL2_CACHE_SIZE);  // 0 or -1 if unknown
#else
  constexpr int64_t cache = 0;
#endif
  return std::clamp<int64_t>(cache, 256 << 10, 2 << 20) / 8 * 5;
}

// Mirrored by `MapSizes` of cpu.py.
struct MapSizes {
  int64_t n, h, w, c;          // images, rows, columns and channels (>= 16) of the input and of the output
  int64_t channels_per_group;  // 1 or 2
  int64_t dilation[2];         // of the near and of the far convolution

  int64_t row() const { return w * c; }
  // Elements from a row to the one below it, for prefetches; 0 for the last row.
  int64_t to_row_below(int64_t row) const { return row + 1 < h ? w * c : 0; }
};

// `v` with neighbouring channels exchanged: with two channels a group, each gives way to the group's other one.
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

// One branch's parameters for one chunk of channels. PER_GROUP is the number of channels a group, 1 or 2.
// weight[t][m] is the weight of kernel position t for the channel itself (m = 0) or the group's other one (m = 1).
template <typename T, int PER_GROUP>
struct Branch {
  Vec<T> weight[9][PER_GROUP], bias, slope;
};

template <typename T, int PER_GROUP>
struct Chunk {
  int64_t start;  // its first channel
  Branch<T, PER_GROUP> branch[2];  // near, far
};

// The parameters of a CFFB's two layers, by chunks. TRANSPOSED gives the kernels of the transposed convolutions, which
// turn the gradients of both outputs into that of the input.
template <bool TRANSPOSED, typename T, int PER_GROUP>
std::vector<Chunk<T, PER_GROUP>> make_chunks(const Layer<const T>* layers, const MapSizes& s) {
  constexpr int lanes = Vector<T>::lanes;
  std::vector<Chunk<T, PER_GROUP>> chunks((s.c + lanes - 1) / lanes);
  for (size_t q = 0; q < chunks.size(); ++q) {
    chunks[q].start = std::min<int64_t>(q * lanes, s.c - lanes);
    for (int b = 0; b < 2; ++b)
      for (int lane = 0; lane < lanes; ++lane) {
        Branch<T, PER_GROUP>& branch = chunks[q].branch[b];
        const int64_t channel = chunks[q].start + lane;
        branch.bias[lane] = TRANSPOSED ? 0 : layers[b].bias[channel];
        branch.slope[lane] = layers[b].slope[channel];
        for (int m = 0; m < PER_GROUP; ++m) {
          const int64_t other = channel / PER_GROUP * PER_GROUP + (channel + m) % PER_GROUP;
          const int64_t to = TRANSPOSED ? other : channel, from = TRANSPOSED ? channel : other;
          const T* kernel = layers[b].weight + 9 * (to * PER_GROUP + from % PER_GROUP);
          for (int t = 0; t < 9; ++t) branch.weight[t][m][lane] = kernel[TRANSPOSED ? 8 - t : t];
        }
      }
  }
  return chunks;
}

// Three rows of one chunk, `dilation` rows apart. Rows beyond the image are zeros, and so are the columns beside it.
template <typename T>
struct Rows {
  const T* row[3];
  int64_t dilation;

  // Column k - 1 of those that a group of pixels needs. The group begins at pixel x; its pixels lie `dilation` apart.
  Vec<T> at(int i, int64_t x, int k) const { return load(row[i] + (x + (k - 1) * dilation) * Vector<T>::lanes); }
};

// The rows around `row`; `kept(from)` is the address of column 0 of row `from`.
template <typename T, typename Kept>
inline Rows<T> rows_around(int64_t row, int64_t dilation, const T* zeros, const MapSizes& s, const Kept& kept) {
  Rows<T> rows{{}, dilation};
  for (int i = 0; i < 3; ++i) {
    const int64_t from = row + (i - 1) * dilation;
    rows.row[i] = from < 0 || from >= s.h ? zeros : kept(from);
  }
  return rows;
}

// Pixels of a group. They are as far apart as the kernel's columns, so that each loaded value serves three of them, and
// each weight, kept in a register, serves all of them.
constexpr int PIXELS = 4;

// Calls work(x, beyond) for groups x, x + dilation, ... that cover every pixel from `begin` to `end` once; `beyond` is
// std::true_type if some of the group's pixels lie beyond `end`.
template <typename Work>
inline void pixel_groups(int64_t begin, int64_t end, int64_t dilation, const Work& work) {
  for (int64_t first = begin; first < std::min(begin + dilation, end); ++first)
    for (int64_t x = first; x < end; x += PIXELS * dilation)
      if (x + (PIXELS - 1) * dilation < end)
        work(x, std::false_type{});
      else
        work(x, std::true_type{});
}

// One branch before its activation, of a group of pixels that begins at pixel x.
template <typename T, int PER_GROUP>
inline __attribute__((always_inline)) void convolve(const Branch<T, PER_GROUP>& branch, const Rows<T>& rows, int64_t x,
                                                    Vec<T> (&out)[PIXELS]) {
  for (int p = 0; p < PIXELS; ++p) out[p] = branch.bias;
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i)
#pragma GCC unroll 10
    for (int k = 0; k < PIXELS + 2; ++k) {
      const Vec<T> value = rows.at(i, x, k);
#pragma GCC unroll 3
      for (int j = 0; j < 3; ++j)
        if (k - j >= 0 && k - j < PIXELS) {
          out[k - j] += value * branch.weight[3 * i + j][0];
          if constexpr (PER_GROUP == 2) out[k - j] += exchanged<T>(value) * branch.weight[3 * i + j][1];
        }
    }
}

// One row of one chunk of a CFFB's output, columns `begin` to `end`. put(column, value) takes each value. `far_row` is
// scratch space for the far branch.
template <typename T, int PER_GROUP, typename Put>
inline void cffb_row(const Chunk<T, PER_GROUP>& chunk, const Rows<T>& near_rows, const Rows<T>& far_rows, int64_t begin,
                     int64_t end, T* far_row, const Put& put) {
  constexpr int lanes = Vector<T>::lanes;
  const Branch<T, PER_GROUP> near = chunk.branch[0], far = chunk.branch[1];  // copies stay in registers
  pixel_groups(begin, end, far_rows.dilation, [&](int64_t column, auto beyond) {
    Vec<T> sums[PIXELS];
    convolve(far, far_rows, column, sums);
    for (int p = 0; p < PIXELS; ++p) {
      const int64_t at = column + p * far_rows.dilation;
      if (decltype(beyond)::value && at >= end) continue;
      store<T>(far_row + (at - begin) * lanes, prelu<T>(sums[p], far.slope));
    }
  });
  pixel_groups(begin, end, near_rows.dilation, [&](int64_t column, auto beyond) {
    Vec<T> sums[PIXELS];
    convolve(near, near_rows, column, sums);
    for (int p = 0; p < PIXELS; ++p) {
      const int64_t at = column + p * near_rows.dilation;
      if (decltype(beyond)::value && at >= end) continue;
      put(at, Vec<T>(prelu<T>(sums[p], near.slope) + load(far_row + (at - begin) * lanes)));
    }
  });
}

// The channels of a map are divided into lines of 64 bytes, of one or more chunks, because memory is read in units of
// that size. Lines are independent of one another.
template <typename S, typename T>
constexpr int64_t chunks_per_line = std::max<int64_t>(1, 64 / sizeof(S) / Vector<T>::lanes);

// `stages` CFFBs in a chain, with two layers each; `plus`, unless it is null, is added to the last one's output.
//
// A line of channels goes through all of them row by row. The input and what lies between two CFFBs are kept in the
// cache, chunk by chunk, as many rows as the dilations reach. `outputs` are the maps of each CFFB's output: all but the
// last may be null, and are then not written. Images that are too wide for the cache are divided into strips, whose
// margins are computed again for the strip beside them. If there are more threads than lines, images are divided into
// bands of rows too.
template <typename S, typename T, int PER_GROUP>
void forward(const S* x, const Layer<const T>* layers, int64_t stages, const S* plus, S* const* outputs,
             const MapSizes& s) {
  constexpr int64_t lanes = Vector<T>::lanes, per_line = chunks_per_line<S, T>;
  if (s.n * s.h * s.w == 0) return;
  std::vector<std::vector<Chunk<T, PER_GROUP>>> chunks;  // of each stage
  for (int64_t stage = 0; stage < stages; ++stage)
    chunks.push_back(make_chunks<false, T, PER_GROUP>(layers + 2 * stage, s));
  const int64_t n_chunks = chunks[0].size(), lines = (n_chunks + per_line - 1) / per_line;

  const int64_t reach = std::max(s.dilation[0], s.dilation[1]), ring = 2 * reach + 1, group = PIXELS * s.dilation[1];
  // Columns that a stage computes on either side of a strip: those that later stages need, rounded up to whole groups.
  const auto halo = [&](int64_t stage) {
    return (2 * (stages - 1 - stage) * reach + group - 1) / group * group / 2;
  };
  const int64_t slack = halo(0) + (PIXELS + 1) * reach;
  const int64_t fitting = kept_bytes() / int64_t(per_line * stages * ring * lanes * sizeof(T)) - 2 * slack;
  const int64_t strips = (s.w + std::max(fitting, group) - 1) / std::max(fitting, group);
  const int64_t strip = ((s.w + strips - 1) / strips + group - 1) / group * group;
  const int64_t kept_row = (std::min(strip, s.w + group) + 2 * slack) * lanes;

  const int64_t threads = omp_get_max_threads(), wanted = (2 * threads + s.n * lines - 1) / (s.n * lines);
  const int64_t bands = threads == 1 ? 1 : std::max<int64_t>(1, std::min(wanted, s.h / (4 * stages * reach)));
  const int64_t for_chunk = stages * ring * kept_row, for_thread = per_line * for_chunk + kept_row;
  Zeros<T> buffers(threads * for_thread), zeros(kept_row);  // the largest first: its allocation may fail
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t task = 0; task < s.n * lines * bands; ++task) {
    const int64_t band = task % bands, first_chunk = task / bands % lines * per_line;
    const int64_t image = task / bands / lines * s.h * s.row();
    const int64_t top = s.h * band / bands, bottom = s.h * (band + 1) / bands;
    const int64_t last_chunk = std::min(first_chunk + per_line, n_chunks), before = (stages - 1) * reach;
    T* const buffer = buffers.data() + omp_get_thread_num() * for_thread;
    T* const far_row = buffer + per_line * for_chunk;
    for (int64_t left = 0; left < s.w; left += strip) {
      const int64_t right = std::min(left + strip, s.w);
      // The address of column 0 of row `row` of a stage's input. Only the strip and its margins are kept.
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
        const int64_t below = s.to_row_below(row);
        const int64_t first = chunks[0][first_chunk].start;
        for (int64_t q = first_chunk; q < last_chunk; ++q) {
          T* const into = kept(q, 0, row);
          const S* const chunk = there + chunks[0][q].start;
          for (int64_t column = from; column < to; ++column) {
            if (q == first_chunk) __builtin_prefetch(there + column * s.c + first + below, 0, 2);
            store<T>(into + column * lanes, load(chunk + column * s.c));
          }
        }
      };
      int64_t next = std::max<int64_t>(0, top - before - reach);  // the next row of the input to keep
      for (int64_t step = top - before; step < bottom + before; ++step)
        for (int64_t stage = 0; stage < stages; ++stage) {
          const int64_t row = step - stage * reach, margin = (stages - 1 - stage) * reach;
          if (row < std::max<int64_t>(0, top - margin) || row >= std::min(s.h, bottom + margin)) continue;
          for (; stage == 0 && next <= std::min(row + reach, s.h - 1); ++next) keep(next);
          const int64_t begin = std::max<int64_t>(0, left - halo(stage)), end = std::min(s.w, right + halo(stage));
          for (int64_t q = first_chunk; q < last_chunk; ++q) {
            const auto input = [&](int64_t from) { return kept(q, stage, from); };
            const Rows<T> near = rows_around<T>(row, s.dilation[0], zero_row, s, input);
            const Rows<T> far = rows_around<T>(row, s.dilation[1], zero_row, s, input);
            const int64_t at = image + row * s.row() + chunks[stage][q].start;
            S* const out = outputs[stage] ? outputs[stage] + at : nullptr;
            if (stage == stages - 1) {
              const S* const added = plus ? plus + at : nullptr;
              const int64_t below = s.to_row_below(row);
              cffb_row(chunks[stage][q], near, far, begin, end, far_row, [&](int64_t column, Vec<T> value) {
                __builtin_prefetch(out + column * s.c + below, 1, 2);  // for the next row
                store(out + column * s.c, added ? Vec<T>(value + load(added + column * s.c)) : value);
              });
            } else {
              T* const into = kept(q, stage + 1, row);
              if (!out)  // the values are not written, so they need not be rounded
                cffb_row(chunks[stage][q], near, far, begin, end, far_row, [&](int64_t column, Vec<T> value) {
                  store<T>(into + column * lanes, value);
                });
              else {
                const bool inside = row >= top && row < bottom;
                cffb_row(chunks[stage][q], near, far, begin, end, far_row, [&](int64_t column, Vec<T> value) {
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

// The gradients of a CFFB's input and of the parameters of its two layers, from that of its output.
template <typename S, typename T, int PER_GROUP>
void backward(const S* x, const Layer<const T>* layers, const S* grad_y, S* grad_x, const Layer<T>* grads,
              const MapSizes& s) {
  constexpr int64_t lanes = Vector<T>::lanes, per_line = chunks_per_line<S, T>;
  const auto chunks = make_chunks<false, T, PER_GROUP>(layers, s);
  const auto transposed = make_chunks<true, T, PER_GROUP>(layers, s);
  const int64_t n_chunks = chunks.size(), lines = (n_chunks + per_line - 1) / per_line;
  const int64_t reach = std::max(s.dilation[0], s.dilation[1]), ring = 2 * reach + 1;
  const int64_t bands = (s.h + BAND_ROWS - 1) / BAND_ROWS;
  // Sums of the parameters' gradients over each band, laid out like the parameters. They are added in order at the end.
  std::vector<Chunk<T, PER_GROUP>> sums(s.n * bands * n_chunks);

  // For one chunk, the input and the gradients of both convolutions' outputs, in the rows that a row of the input's
  // gradient needs: they never leave the cache. Row r is kept at place r % ring, with zeros on both sides.
  const int64_t padded = (s.w + (PIXELS + 1) * reach) * lanes, for_thread = (3 * ring + 1) * padded;
  const int64_t threads = omp_get_max_threads();
  Zeros<T> buffers(threads * for_thread), zeros(padded);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t task = 0; task < s.n * bands * lines; ++task) {
    const int64_t band = task / lines, image = band / bands * s.h * s.row();
    const int64_t top = s.h * (band % bands) / bands, bottom = s.h * (band % bands + 1) / bands;
    const int64_t begin = std::max<int64_t>(0, top - reach), first_chunk = task % lines * per_line;
    T* const buffer = buffers.data() + omp_get_thread_num() * for_thread;
    T* const far_row = buffer + 3 * ring * padded;
    const T* const zero_row = zeros.data() + reach * lanes;
    for (int64_t q = first_chunk; q < std::min(first_chunk + per_line, n_chunks); ++q) {
      const auto kept = [&](int b, int64_t row) { return buffer + (b * ring + row % ring) * padded + reach * lanes; };
      const auto input = [&](int64_t row) { return kept(2, row); };
      const S* const there = x + image + chunks[q].start;
      const auto keep_input = [&](int64_t row) {
        const int64_t below = s.to_row_below(row);  // prefetches what will be needed next
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
        const S* const grad_row = grad_y + image + row * s.row() + chunks[q].start;
        const int64_t below = s.to_row_below(row);
        for (int b = 0; b < 2 && row < s.h; ++b) {
          const Branch<T, PER_GROUP> branch = chunks[q].branch[b];
          const Rows<T> rows = rows_around<T>(row, s.dilation[b], zero_row, s, input);
          T* const kept_row = kept(b, row);
          Branch<T, PER_GROUP> sum = sums[band * n_chunks + q].branch[b];
          pixel_groups(0, s.w, s.dilation[b], [&](int64_t column, auto beyond) {
            Vec<T> out[PIXELS], grad[PIXELS];
            convolve(branch, rows, column, out);
            for (int p = 0; p < PIXELS; ++p) {
              const int64_t at = column + p * s.dilation[b];
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
              for (int k = 0; k < PIXELS + 2; ++k) {
                const Vec<T> value = rows.at(i, column, k);
#pragma GCC unroll 3
                for (int j = 0; j < 3; ++j)
                  if (k - j >= 0 && k - j < PIXELS) {
                    sum.weight[3 * i + j][0] += grad[k - j] * value;
                    if constexpr (PER_GROUP == 2) sum.weight[3 * i + j][1] += grad[k - j] * exchanged<T>(value);
                  }
              }
          });
          // Rows around the band are computed for its input's gradient; only the band they belong to adds them up.
          if (row >= top && row < bottom) sums[band * n_chunks + q].branch[b] = sum;
        }
        const int64_t done = row - reach;  // the row of the input's gradient whose inputs are complete
        if (done < top) continue;
        S* const grad_input = grad_x + image + done * s.row() + chunks[q].start;
        for (int b = 1; b >= 0; --b) {
          const Branch<T, PER_GROUP> branch = transposed[q].branch[b];
          const auto output = [&](int64_t from) { return kept(b, from); };
          const Rows<T> rows = rows_around<T>(done, s.dilation[b], zero_row, s, output);
          pixel_groups(0, s.w, s.dilation[b], [&](int64_t column, auto beyond) {
            Vec<T> out[PIXELS];
            convolve(branch, rows, column, out);
            for (int p = 0; p < PIXELS; ++p) {
              const int64_t at = column + p * s.dilation[b];
              if (decltype(beyond)::value && at >= s.w) continue;
              if (b == 1)
                store<T>(far_row + at * lanes, out[p]);
              else
                store(grad_input + at * s.c, Vec<T>(out[p] + load(far_row + at * lanes)));
            }
          });
        }
      }
    }
  }

  for (int64_t q = 0; q < n_chunks; ++q)
    for (int b = 0; b < 2; ++b) {
      Branch<T, PER_GROUP> total{};
      for (int64_t band = 0; band < s.n * bands; ++band) {
        const Branch<T, PER_GROUP>& part = sums[band * n_chunks + q].branch[b];
        total.bias += part.bias;
        total.slope += part.slope;
        for (int t = 0; t < 9; ++t)
          for (int m = 0; m < PER_GROUP; ++m) total.weight[t][m] += part.weight[t][m];
      }
      for (int lane = 0; lane < lanes; ++lane) {
        const int64_t channel = chunks[q].start + lane;
        grads[b].bias[channel] = total.bias[lane];
        grads[b].slope[channel] = total.slope[lane];
        for (int t = 0; t < 9; ++t)
          for (int m = 0; m < PER_GROUP; ++m)
            grads[b].weight[(channel * PER_GROUP + (channel + m) % PER_GROUP) * 9 + t] = total.weight[t][m][lane];
      }
    }
}

// Mean and variance (divided by h * w) of each channel of each image. Differences from the first pixel are summed, so
// that a small variance beside a large mean is not lost: within a row in T, over rows in double.
template <typename S, typename T>
void var_mean(const S* x, T* variance, T* mean, const MapSizes& s) {
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

// The functions that cpu.py calls, for maps of type STORED and parameters of type COMPUTED, which the compiler's
// command line defines. `layers` and `grads` are the near and the far layer of a CFFB: weight (c, channels_per_group,
// 3, 3), bias (c) and slope (c). The forward pass takes those of each of `stages` CFFBs, one after the other. `plus` may
// be null, and so may all but the last of the `outputs`. Each function returns the status of `status_of`.
extern "C" int cffb_forward(const STORED* x, const Layer<const COMPUTED>* layers, int64_t stages, const STORED* plus,
                            STORED* const* outputs, const MapSizes* sizes) {
  const MapSizes s = *sizes;
  return status_of([&] {
    s.channels_per_group == 1 ? forward<STORED, COMPUTED, 1>(x, layers, stages, plus, outputs, s)
                              : forward<STORED, COMPUTED, 2>(x, layers, stages, plus, outputs, s);
  });
}

extern "C" int cffb_backward(const STORED* x, const Layer<const COMPUTED>* layers, const STORED* grad_y, STORED* grad_x,
                             const Layer<COMPUTED>* grads, const MapSizes* sizes) {
  const MapSizes s = *sizes;
  return status_of([&] {
    s.channels_per_group == 1 ? backward<STORED, COMPUTED, 1>(x, layers, grad_y, grad_x, grads, s)
                              : backward<STORED, COMPUTED, 2>(x, layers, grad_y, grad_x, grads, s);
  });
}

// `dilation` and `channels_per_group` are not read.
extern "C" int var_mean(const STORED* x, COMPUTED* variance, COMPUTED* mean, const MapSizes* sizes) {
  const MapSizes s = *sizes;
  return status_of([&] { var_mean<STORED, COMPUTED>(x, variance, mean, s); });
}
