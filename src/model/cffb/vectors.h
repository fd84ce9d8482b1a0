// What both C++ files share: vector registers of any width, bfloat16 storage, the parameters of a layer, and the status
// that an entry point returns.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
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

template <typename T>
struct Vector {
  static constexpr int lanes = REGISTER / sizeof(T);
  typedef T type __attribute__((vector_size(REGISTER)));
};
template <typename T>
using Vec = typename Vector<T>::type;

// A register's worth of bytes.
template <typename T>
inline Vec<T> load_bits(const void* from) {
  Vec<T> value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <typename T>
inline Vec<T> load(const T* from) {
  return load_bits<T>(from);
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

// float -> bfloat16, rounded to nearest, ties to even. A denormal becomes 0 and a NaN becomes a quiet one, as with
// VCVTNEPS2BF16.
inline Half halved(Vec<float> value) {
  Half half;
#if defined(__AVX512BF16__) && defined(__AVX512F__)
  const __m256bh halves = _mm512_cvtneps_pbh((__m512)value);
  std::memcpy(&half, &halves, sizeof half);
#else
  Bits bits;
  std::memcpy(&bits, &value, sizeof bits);
  const Bits magnitude = bits & 0x7fffffff;
  const Bits nearest = bits + 0x7fff + (bits >> 16 & 1);
  const Bits not_a_number = bits | 0x400000, zero = bits & 0x80000000;
  const Bits upper = magnitude > 0x7f800000 ? not_a_number : magnitude < 0x800000 ? zero : nearest;
  half = __builtin_convertvector(upper >> 16, Half);
#endif
  return half;
}

inline Vec<float> widened(Half half) {
  const Bits bits = __builtin_convertvector(half, Bits) << 16;
  Vec<float> value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// One value in the type of the arithmetic.
inline float widened(bfloat16 half) {
  const uint32_t bits = uint32_t(half.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline float widened(float value) { return value; }
inline double widened(double value) { return value; }

inline Vec<float> load(const bfloat16* from) {
  Half half;
  std::memcpy(&half, from, sizeof half);
  return widened(half);
}

inline void store(bfloat16* to, Vec<float> value) {
  const Half half = halved(value);
  std::memcpy(to, &half, sizeof half);
}

// `value` as it reads after being stored in a map of type S.
template <typename S, typename V>
inline V rounded(V value) {
  if constexpr (std::is_same_v<S, bfloat16>)
    return widened(halved(value));
  else
    return value;
}

// `count` zeros, aligned to a cache line, so that no register is loaded from two lines.
template <typename T>
class Zeros {
  std::vector<T> all_;

 public:
  explicit Zeros(int64_t count) : all_(count + 64 / sizeof(T)) {}
  T* data() {
    void* at = all_.data();
    size_t space = all_.size() * sizeof(T);
    return static_cast<T*>(std::align(64, 1, at, space));
  }
};

// The parameters of a convolution and of the activation behind it, by address. Mirrored by `Layer` of cpu.py.
template <typename T>
struct Layer {
  T *weight, *bias, *slope;
};

template <typename T>
inline Vec<T> prelu(Vec<T> value, Vec<T> slope) {
  return value > 0 ? value : value * slope;
}

// Runs `work`; no exception leaves C++. Returns 0, or 1 if there was no memory for the buffers (std::bad_alloc,
// std::length_error).
template <typename Work>
int status_of(Work work) {
  try {
    work();
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}

}  // namespace
