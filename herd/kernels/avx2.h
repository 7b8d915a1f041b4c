// The words of AVX-512 that our kernels use, for processors that have only AVX2: a vector of 512 bits is two of 256, a
// mask becomes a vector of bits where it is used. bfloat16 products are sums in float32, as the instructions make them.
// The kernels are written once; this file stands between them and an older processor.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace avx2 {

#define HERD_INLINE inline __attribute__((always_inline))

struct floats { __m256 low, high; };
struct ints { __m256i low, high; };

// ---- halves ---------------------------------------------------------------------------------------------------------

#define HERD_FLOATS(name, half) HERD_INLINE floats name(floats a, floats b) { return {half(a.low, b.low), half(a.high, b.high)}; }
#define HERD_INTS(name, half) HERD_INLINE ints name(ints a, ints b) { return {half(a.low, b.low), half(a.high, b.high)}; }
HERD_FLOATS(add_ps, _mm256_add_ps)
HERD_FLOATS(sub_ps, _mm256_sub_ps)
HERD_FLOATS(mul_ps, _mm256_mul_ps)
HERD_FLOATS(div_ps, _mm256_div_ps)
HERD_FLOATS(max_ps, _mm256_max_ps)
HERD_FLOATS(min_ps, _mm256_min_ps)
HERD_INTS(add_epi16, _mm256_add_epi16)
HERD_INTS(add_epi32, _mm256_add_epi32)
HERD_INTS(max_epi32, _mm256_max_epi32)
HERD_INTS(or_si512, _mm256_or_si256)
HERD_INTS(and_si512, _mm256_and_si256)
HERD_INTS(unpacklo_epi16, _mm256_unpacklo_epi16)
HERD_INTS(unpackhi_epi16, _mm256_unpackhi_epi16)
HERD_INTS(unpacklo_epi32, _mm256_unpacklo_epi32)
HERD_INTS(unpackhi_epi32, _mm256_unpackhi_epi32)
HERD_INTS(unpacklo_epi64, _mm256_unpacklo_epi64)
HERD_INTS(unpackhi_epi64, _mm256_unpackhi_epi64)
#undef HERD_FLOATS
#undef HERD_INTS

HERD_INLINE floats fmadd_ps(floats a, floats b, floats c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
HERD_INLINE floats fnmadd_ps(floats a, floats b, floats c) {
  return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
HERD_INLINE ints slli_epi32(ints a, int count) { return {_mm256_slli_epi32(a.low, count), _mm256_slli_epi32(a.high, count)}; }
HERD_INLINE ints srli_epi16(ints a, int count) { return {_mm256_srli_epi16(a.low, count), _mm256_srli_epi16(a.high, count)}; }
HERD_INLINE floats castsi512_ps(ints a) { return {_mm256_castsi256_ps(a.low), _mm256_castsi256_ps(a.high)}; }
HERD_INLINE ints castps_si512(floats a) { return {_mm256_castps_si256(a.low), _mm256_castps_si256(a.high)}; }
HERD_INLINE ints cvtps_epi32(floats a) { return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)}; }
HERD_INLINE floats cvtepi32_ps(ints a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
HERD_INLINE floats abs_ps(floats a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}

// ---- constants, loads and stores ------------------------------------------------------------------------------------

HERD_INLINE floats set1_ps(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
HERD_INLINE ints set1_epi16(short a) { return {_mm256_set1_epi16(a), _mm256_set1_epi16(a)}; }
HERD_INLINE ints set1_epi32(int a) { return {_mm256_set1_epi32(a), _mm256_set1_epi32(a)}; }
HERD_INLINE floats setzero_ps() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
HERD_INLINE ints setzero_si512() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
HERD_INLINE floats loadu_ps(const void* at) { return {_mm256_loadu_ps((const float*)at), _mm256_loadu_ps((const float*)at + 8)}; }
HERD_INLINE ints loadu_si512(const void* at) {
  return {_mm256_loadu_si256((const __m256i*)at), _mm256_loadu_si256((const __m256i*)at + 1)};
}
HERD_INLINE void storeu_ps(void* at, floats a) { _mm256_storeu_ps((float*)at, a.low), _mm256_storeu_ps((float*)at + 8, a.high); }
HERD_INLINE void storeu_si512(void* at, ints a) {
  _mm256_storeu_si256((__m256i*)at, a.low), _mm256_storeu_si256((__m256i*)at + 1, a.high);
}
HERD_INLINE floats setr_ps(float a, float b, float c, float d, float e, float f, float g, float h, float i, float j, float k,
                           float l, float m, float n, float o, float p) {
  return {_mm256_setr_ps(a, b, c, d, e, f, g, h), _mm256_setr_ps(i, j, k, l, m, n, o, p)};
}
HERD_INLINE ints setr_epi32(int a, int b, int c, int d, int e, int f, int g, int h, int i, int j, int k, int l, int m, int n,
                            int o, int p) {
  return {_mm256_setr_epi32(a, b, c, d, e, f, g, h), _mm256_setr_epi32(i, j, k, l, m, n, o, p)};
}

// ---- reductions -----------------------------------------------------------------------------------------------------

template <class Join>
HERD_INLINE float reduce_ps(floats a, Join join) {
  const __m256 eight = join(a.low, a.high);
  const __m256 four = join(eight, _mm256_permute2f128_ps(eight, eight, 1));
  const __m256 two = join(four, _mm256_permute_ps(four, 0x4e));
  return _mm256_cvtss_f32(join(two, _mm256_permute_ps(two, 0xb1)));
}
HERD_INLINE float reduce_add_ps(floats a) {
  return reduce_ps(a, [](__m256 x, __m256 y) { return _mm256_add_ps(x, y); });
}
HERD_INLINE float reduce_max_ps(floats a) {
  return reduce_ps(a, [](__m256 x, __m256 y) { return _mm256_max_ps(x, y); });
}
HERD_INLINE float reduce_min_ps(floats a) {
  return reduce_ps(a, [](__m256 x, __m256 y) { return _mm256_min_ps(x, y); });
}
HERD_INLINE int reduce_max_epi32(ints a) {
  alignas(32) int all[8];
  _mm256_store_si256((__m256i*)all, _mm256_max_epi32(a.low, a.high));
  int most = all[0];
  for (int one : all) most = one > most ? one : most;
  return most;
}

// ---- wider and narrower ---------------------------------------------------------------------------------------------

HERD_INLINE ints cvtepu16_epi32(__m256i a) {
  return {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(a)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 1))};
}
HERD_INLINE ints cvtepu8_epi16(__m256i a) {
  return {_mm256_cvtepu8_epi16(_mm256_castsi256_si128(a)), _mm256_cvtepu8_epi16(_mm256_extracti128_si256(a, 1))};
}
HERD_INLINE ints cvtepi8_epi16(__m256i a) {
  return {_mm256_cvtepi8_epi16(_mm256_castsi256_si128(a)), _mm256_cvtepi8_epi16(_mm256_extracti128_si256(a, 1))};
}
HERD_INLINE ints cvtepi8_epi32(__m128i a) { return {_mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(_mm_srli_si128(a, 8))}; }
HERD_INLINE __m256i cvtsepi32_epi16(ints a) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(a.low, a.high), 0xd8); }
HERD_INLINE __m128i cvtepi32_epi8(ints a) {  // of numbers that fit
  const __m256i words = cvtsepi32_epi16(a);
  const __m256i zero = _mm256_setzero_si256(), low = _mm256_and_si256(words, _mm256_set1_epi16(255));
  const __m256i bytes = _mm256_packus_epi16(low, zero);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(bytes, 0x08));
}

// To the nearest, ties to even; what is no number stays none.
HERD_INLINE __m256i rounded(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a), last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), last);
  const __m256i none = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(up, _mm256_set1_epi32(0x7fc00000), none), 16);
}
HERD_INLINE __m256i cvtneps_pbh(floats a) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded(a.low), rounded(a.high)), 0xd8);
}
HERD_INLINE ints cvtne2ps_pbh(floats high, floats low) { return {cvtneps_pbh(low), cvtneps_pbh(high)}; }

// ---- products -------------------------------------------------------------------------------------------------------

HERD_INLINE __m256 even(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
HERD_INLINE __m256 odd(__m256i pairs) { return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(int(0xffff0000)))); }
HERD_INLINE __m256 dot(__m256 sum, __m256i a, __m256i b) {
  return _mm256_fmadd_ps(odd(a), odd(b), _mm256_fmadd_ps(even(a), even(b), sum));
}
HERD_INLINE floats dpbf16_ps(floats sum, ints a, ints b) { return {dot(sum.low, a.low, b.low), dot(sum.high, a.high, b.high)}; }
HERD_INLINE ints dpwssd_epi32(ints sum, ints a, ints b) {
  return {_mm256_add_epi32(sum.low, _mm256_madd_epi16(a.low, b.low)), _mm256_add_epi32(sum.high, _mm256_madd_epi16(a.high, b.high))};
}

template <int mode>
HERD_INLINE floats roundscale_ps(floats a) {
  return {_mm256_round_ps(a.low, mode), _mm256_round_ps(a.high, mode)};
}
HERD_INLINE __m256 power_of_two(__m256 whole) {  // of -126 to 127
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23));
}
HERD_INLINE floats scalef_ps(floats a, floats whole) {
  return {_mm256_mul_ps(a.low, power_of_two(whole.low)), _mm256_mul_ps(a.high, power_of_two(whole.high))};
}

// ---- other places ---------------------------------------------------------------------------------------------------

// Quarters 0 to 3 of a and b, two each: the four choices that a transposition makes.
template <int quarters>
HERD_INLINE ints shuffle_i32x4(ints a, ints b) {
  static_assert(quarters == 0x44 || quarters == 0xee || quarters == 0x88 || quarters == 0xdd);
  if (quarters == 0x44) return {a.low, b.low};
  if (quarters == 0xee) return {a.high, b.high};
  constexpr int lanes = quarters == 0x88 ? 0x20 : 0x31;
  return {_mm256_permute2x128_si256(a.low, a.high, lanes), _mm256_permute2x128_si256(b.low, b.high, lanes)};
}
template <class Number, class Vector>  // through memory: where it is not what counts
HERD_INLINE Vector chosen(Vector a, ints places, Vector b) {
  constexpr int count = 64 / sizeof(Number);
  Number from[2 * count], to[count], which[count];
  std::memcpy(from, &a, 64), std::memcpy(from + count, &b, 64), std::memcpy(which, &places, 64);
  for (int i = 0; i < count; i++) to[i] = from[which[i] & (2 * count - 1)];
  std::memcpy(&a, to, 64);
  return a;
}
// Of a table whose upper half repeats the lower one.
HERD_INLINE __m256i looked_up(__m256i places, __m256i lows, __m256i highs) {
  const __m256i at = _mm256_or_si256(_mm256_and_si256(places, _mm256_set1_epi16(15)), _mm256_set1_epi16(short(0x8000)));
  return _mm256_or_si256(_mm256_shuffle_epi8(lows, at), _mm256_slli_epi16(_mm256_shuffle_epi8(highs, at), 8));
}
HERD_INLINE ints permutexvar_epi16(ints places, ints table) {
  const __m256i bytes = _mm256_packus_epi16(_mm256_and_si256(table.low, _mm256_set1_epi16(255)), _mm256_srli_epi16(table.low, 8));
  const __m256i order = _mm256_permute4x64_epi64(bytes, 0xd8);  // sixteen lower bytes, sixteen upper ones
  const __m256i lows = _mm256_permute2x128_si256(order, order, 0x00), highs = _mm256_permute2x128_si256(order, order, 0x11);
  return {looked_up(places.low, lows, highs), looked_up(places.high, lows, highs)};
}

// ---- masks ----------------------------------------------------------------------------------------------------------

HERD_INLINE __m256 bits_of(unsigned mask) {
  const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(mask)), each), each));
}
HERD_INLINE floats mask_mov_ps(floats a, unsigned mask, floats b) {
  return {_mm256_blendv_ps(a.low, b.low, bits_of(mask)), _mm256_blendv_ps(a.high, b.high, bits_of(mask >> 8))};
}
HERD_INLINE floats maskz_mov_ps(unsigned mask, floats a) { return mask_mov_ps(setzero_ps(), mask, a); }
HERD_INLINE floats mask_max_ps(floats other, unsigned mask, floats a, floats b) { return mask_mov_ps(other, mask, max_ps(a, b)); }
template <int kind>
HERD_INLINE uint16_t cmp_ps_mask(floats a, floats b) {
  return uint16_t(_mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, kind)) | _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, kind)) << 8);
}
template <class Number>
HERD_INLINE ints loaded(uint64_t mask, const void* at) {
  constexpr int count = 64 / sizeof(Number);
  if (mask == (count == 64 ? ~0ull : (1ull << count) - 1)) return loadu_si512(at);
  Number numbers[count] = {};
  for (int i = 0; i < count; i++)
    if (mask >> i & 1) numbers[i] = ((const Number*)at)[i];
  return loadu_si512(numbers);
}
HERD_INLINE floats maskz_loadu_ps(unsigned mask, const void* at) { return castsi512_ps(loaded<float>(mask, at)); }
HERD_INLINE __m256i half_loaded(unsigned mask, const void* at) {  // sixteen numbers of 16 bits
  return mask == 0xffff ? _mm256_loadu_si256((const __m256i*)at) : loaded<uint16_t>(mask, at).low;
}
HERD_INLINE void half_stored(void* at, unsigned mask, __m256i a) {
  if (mask == 0xffff) return _mm256_storeu_si256((__m256i*)at, a);
  uint16_t numbers[16];
  std::memcpy(numbers, &a, 32);
  for (int i = 0; i < 16; i++)
    if (mask >> i & 1) ((uint16_t*)at)[i] = numbers[i];
}

}  // namespace avx2

#define __m512 avx2::floats
#define __m512i avx2::ints
#define __m512bh avx2::ints
#define _mm512_abs_ps avx2::abs_ps
#define _mm512_add_epi16 avx2::add_epi16
#define _mm512_add_epi32 avx2::add_epi32
#define _mm512_add_ps avx2::add_ps
#define _mm512_castps_si512 avx2::castps_si512
#define _mm512_castsi512_ps avx2::castsi512_ps
#define _mm512_and_si512 avx2::and_si512
#define _mm512_cmp_ps_mask(a, b, kind) avx2::cmp_ps_mask<kind>(a, b)
#define _mm512_cvtepi32_epi8 avx2::cvtepi32_epi8
#define _mm512_cvtepi32_ps avx2::cvtepi32_ps
#define _mm512_cvtepi8_epi16 avx2::cvtepi8_epi16
#define _mm512_cvtepi8_epi32 avx2::cvtepi8_epi32
#define _mm512_cvtepu16_epi32 avx2::cvtepu16_epi32
#define _mm512_cvtepu8_epi16 avx2::cvtepu8_epi16
#define _mm512_cvtne2ps_pbh avx2::cvtne2ps_pbh
#define _mm512_cvtneps_pbh avx2::cvtneps_pbh
#define _mm512_cvtps_epi32 avx2::cvtps_epi32
#define _mm512_cvtsepi32_epi16 avx2::cvtsepi32_epi16
#define _mm512_div_ps avx2::div_ps
#define _mm512_dpbf16_ps avx2::dpbf16_ps
#define _mm512_dpwssd_epi32 avx2::dpwssd_epi32
#define _mm512_fmadd_ps avx2::fmadd_ps
#define _mm512_fnmadd_ps avx2::fnmadd_ps
#define _mm512_load_ps avx2::loadu_ps
#define _mm512_load_si512 avx2::loadu_si512
#define _mm512_loadu_ps avx2::loadu_ps
#define _mm512_loadu_si512 avx2::loadu_si512
#define _mm512_mask_max_ps avx2::mask_max_ps
#define _mm512_mask_mov_ps avx2::mask_mov_ps
#define _mm512_maskz_loadu_epi16(mask, at) avx2::loaded<uint16_t>(mask, at)
#define _mm512_maskz_loadu_epi64(mask, at) avx2::loaded<uint64_t>(mask, at)
#define _mm512_maskz_loadu_ps avx2::maskz_loadu_ps
#define _mm512_maskz_mov_ps avx2::maskz_mov_ps
#define _mm512_max_epi32 avx2::max_epi32
#define _mm512_max_ps avx2::max_ps
#define _mm512_min_ps avx2::min_ps
#define _mm512_mul_ps avx2::mul_ps
#define _mm512_or_si512 avx2::or_si512
#define _mm512_permutex2var_epi16(a, places, b) avx2::chosen<uint16_t>(a, places, b)
#define _mm512_permutex2var_ps(a, places, b) avx2::chosen<uint32_t>(a, places, b)
#define _mm512_permutexvar_epi16 avx2::permutexvar_epi16
#define _mm512_reduce_add_ps avx2::reduce_add_ps
#define _mm512_reduce_max_epi32 avx2::reduce_max_epi32
#define _mm512_reduce_max_ps avx2::reduce_max_ps
#define _mm512_reduce_min_ps avx2::reduce_min_ps
#define _mm512_roundscale_ps(a, mode) avx2::roundscale_ps<mode>(a)
#define _mm512_scalef_ps avx2::scalef_ps
#define _mm512_set1_epi16 avx2::set1_epi16
#define _mm512_set1_epi32 avx2::set1_epi32
#define _mm512_set1_ps avx2::set1_ps
#define _mm512_setr_epi32 avx2::setr_epi32
#define _mm512_setr_ps avx2::setr_ps
#define _mm512_setzero_ps avx2::setzero_ps
#define _mm512_setzero_si512 avx2::setzero_si512
#define _mm512_shuffle_i32x4(a, b, quarters) avx2::shuffle_i32x4<quarters>(a, b)
#define _mm512_slli_epi32 avx2::slli_epi32
#define _mm512_srli_epi16 avx2::srli_epi16
#define _mm512_store_ps avx2::storeu_ps
#define _mm512_storeu_ps avx2::storeu_ps
#define _mm512_storeu_si512 avx2::storeu_si512
#define _mm512_sub_ps avx2::sub_ps
#define _mm512_unpackhi_epi16 avx2::unpackhi_epi16
#define _mm512_unpackhi_epi32 avx2::unpackhi_epi32
#define _mm512_unpackhi_epi64 avx2::unpackhi_epi64
#define _mm512_unpacklo_epi16 avx2::unpacklo_epi16
#define _mm512_unpacklo_epi32 avx2::unpacklo_epi32
#define _mm512_unpacklo_epi64 avx2::unpacklo_epi64
#define _mm256_maskz_loadu_epi16 avx2::half_loaded
#define _mm256_mask_storeu_epi16 avx2::half_stored
