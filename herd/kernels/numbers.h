// Numbers as the kernels see them: bfloat16, four bits as a table look-up, an exponential.
#pragma once

#include <immintrin.h>
#if !defined(__AVX512BF16__) || !defined(__AVX512VNNI__) || !defined(__AVX512BW__) || !defined(__AVX512VL__)
#define HERD_AVX2
#include "avx2.h"
#endif

#include <cstdint>
#include <cstring>
#include <initializer_list>

typedef uint16_t bf16;
typedef uint32_t pair;  // two bfloat16 that one instruction multiplies and sums together

#ifdef HERD_AVX2
constexpr bool kFewRegisters = true;  // sixteen, of half the width
#else
constexpr bool kFewRegisters = false;
#endif

inline bf16 round_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float widen(bf16 value) {
  uint32_t bits = uint32_t(value) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}

// Four float16 numbers as float32.
inline __m128 widen_halfs(uint64_t four) { return _mm_cvtph_ps(_mm_cvtsi64_si128((long long)four)); }

inline __m512 widen_halfs16(__m256i halfs) {
#ifdef HERD_AVX2
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(halfs)), _mm256_cvtph_ps(_mm256_extracti128_si256(halfs, 1))};
#else
  return _mm512_cvtph_ps(halfs);
#endif
}

// One of four numbers in the lower eight places, another in the upper ones.
template <int low, int high>
inline __m512 spread(__m128 four) {
#ifdef HERD_AVX2
  float each[4];
  _mm_storeu_ps(each, four);
  return {_mm256_set1_ps(each[low]), _mm256_set1_ps(each[high])};
#else
  const __m512i places = _mm512_inserti64x4(_mm512_set1_epi32(low), _mm256_set1_epi32(high), 1);
  return _mm512_permutexvar_ps(places, _mm512_castps128_ps512(four));
#endif
}

inline __m512 widen16(const bf16* at) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)at)), 16));
}

inline void narrow16(bf16* at, __m512 value) { _mm256_storeu_si256((__m256i*)at, (__m256i)_mm512_cvtneps_pbh(value)); }

inline __m512bh load_bf16(const void* at) { return (__m512bh)_mm512_loadu_si512(at); }

// 32 bfloat16 numbers: entry i is offset + factor * (the low nibble of i, read with or without sign).
inline __m512i nibble_table(float offset, float factor, bool has_sign) {
  alignas(64) bf16 entries[32];
  for (int i = 0; i < 32; i++) {
    int nibble = i & 15;
    if (has_sign && nibble > 7) nibble -= 16;
    entries[i] = round_to_bf16(offset + factor * nibble);
  }
  return _mm512_load_si512(entries);
}

inline __m512i widen_bytes(const uint8_t* at) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)at)); }

// e^x for x <= 0: 2^whole by the exponent's bits, the rest by a polynomial of degree 5.
inline __m512 exponential(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
  __m512 scaled = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
  __m512 whole = _mm512_roundscale_ps(scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693359375f), x);
  rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(-2.12194440e-4f), rest);
  __m512 sum = _mm512_set1_ps(1.0f / 120);
  for (float term : {1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(term));
  return _mm512_scalef_ps(sum, whole);
}

// x times the sigmoid of x.
inline __m512 silu(__m512 x) {
  const __m512 one = _mm512_set1_ps(1), size = _mm512_abs_ps(x);
  const __m512 small = exponential(_mm512_sub_ps(_mm512_setzero_ps(), size));  // e^-|x|
  const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  const __m512 top = _mm512_mask_mov_ps(one, negative, small);
  return _mm512_mul_ps(x, _mm512_div_ps(top, _mm512_add_ps(one, small)));
}
