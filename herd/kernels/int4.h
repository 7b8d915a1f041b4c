// Weights of 4 bits against few tokens. A scale for 32 weights; 64 weights are 32 bytes: the lower nibbles are the first
// 32, the upper ones the last 32.
//
// 128 columns, A and B of 64 each, are 32 words of four nibbles. A nibble's place in its word gives four vectors: even
// columns of both first halves (16 of A, then 16 of B), even ones of the last halves, odd ones of the first, of the
// last. A token's columns lie in that order, zeros past K. What a nibble is taken for is more than its weight: so much of
// each 32 columns is `excess`.
#pragma once

#include "tokens.h"

namespace {

#ifdef HERD_AVX2
// Integers: a token's columns as multiples of 1/32767 of the largest among 64, a nibble as it is, 8 more than its weight.
struct Int4Numbers {
  using Number = int16_t;
  static constexpr float kMore = 8;  // than its weight a nibble is taken for

  static float take(const Tokens& x, int64_t m, int64_t k, Number* to) { return whole_numbers(x, m, k, to); }
  static float excess(const Number* at, float scale) {
    int sum = 0;
    for (int i = 0; i < kGroup; i++) sum += at[i];
    return kMore * scale * float(sum);
  }
  static __m512i nibbles(__m512i words, int place) {
    const __m512i nibble = _mm512_set1_epi16(15);
    return _mm512_and_si512(_mm512_srli_epi16(words, 4 * place), nibble);
  }
  static __m512 products(__m512i a, const Number* x, __m512i b, const Number* y) {
    const __m512i first = _mm512_dpwssd_epi32(_mm512_setzero_si512(), a, _mm512_loadu_si512(x));
    return _mm512_cvtepi32_ps(_mm512_dpwssd_epi32(first, b, _mm512_loadu_si512(y)));
  }
  // Scales of A's columns, then of B's: of a token, and of one half of the weights.
  static __m512 token_scales(const float* at) { return {_mm256_set1_ps(at[0]), _mm256_set1_ps(at[1])}; }
  template <int half>
  static __m512 weight_scales(uint64_t four) {
    return {_mm256_set1_ps(widen(bf16(four >> 16 * half))), _mm256_set1_ps(widen(bf16(four >> 16 * (half + 2))))};
  }
};
#else
// bfloat16: a token as it is, a nibble below the exponent of 128, 128 more than itself and 136 more than its weight.
struct Int4Numbers {
  using Number = bf16;
  static constexpr float kMore = 136;  // than its weight a nibble is taken for

  static float take(const Tokens& x, int64_t m, int64_t k, Number* to) {
    std::memcpy(to, x.at(m, k), 32 * sizeof(bf16)), std::memcpy(to + 32, x.at(m, k + 32), 32 * sizeof(bf16));
    return 1;
  }
  static float excess(const Number* at, float) {
    const __m512bh each = (__m512bh)_mm512_set1_epi16(0x4308);  // 136
    return _mm512_reduce_add_ps(_mm512_dpbf16_ps(_mm512_setzero_ps(), each, load_bf16(at)));
  }
  static __m512i nibbles(__m512i words, int place) {
    const __m512i nibble = _mm512_set1_epi16(15), hundred = _mm512_set1_epi16(0x4300);  // 128
    return _mm512_ternarylogic_epi32(_mm512_srli_epi16(words, 4 * place), nibble, hundred, 0xea);  // and, or
  }
  static __m512 products(__m512i a, const Number* x, __m512i b, const Number* y) {
    const __m512 first = _mm512_dpbf16_ps(_mm512_setzero_ps(), (__m512bh)a, load_bf16(x));
    return _mm512_dpbf16_ps(first, (__m512bh)b, load_bf16(y));
  }
  static __m512 token_scales(const float*) { return _mm512_set1_ps(1); }
  template <int half>
  static __m512 weight_scales(uint64_t four) {
    const __m512i places = _mm512_inserti64x4(_mm512_set1_epi16(half), _mm256_set1_epi16(half + 2), 1);
    return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, places, _mm512_set1_epi64(four)));
  }
};
#endif

// A group's weight is its scale, a bfloat16, times a nibble less 8.
struct PlainGroups {
  static constexpr bool kHaveLeast = false;
  template <int half>
  static __m512 weight_scales(uint64_t four) { return Int4Numbers::weight_scales<half>(four); }
  static __m512 widened(__m256i sixteen) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(sixteen), 16)); }
};

// A group's weight is its scale times a nibble, and its least weight: two float16, as llama.cpp's blocks have them.
struct BlockGroups {
  static constexpr bool kHaveLeast = true;
  template <int half>
  static __m512 weight_scales(uint64_t four) { return spread<half, half + 2>(widen_halfs(four)); }
  static __m512 widened(__m256i sixteen) { return widen_halfs16(sixteen); }
};

template <class Groups>
struct Int4RowsOf {
  using Numbers = Int4Numbers;
  using Number = Numbers::Number;
  static constexpr int kKind = 2;
  const uint8_t* weight;
  const uint16_t *scales, *least;

  struct Form {
    Number* numbers;
    float *scales, *excess;  // of 64 columns; of 32

    static int64_t whole(int64_t K) { return (K + 127) / 128 * 128; }
    static int64_t bytes(int64_t K) { return whole(K) * sizeof(Number) + (whole(K) / 64 + K / kGroup) * sizeof(float); }
    Form(const Tokens& x, int64_t m)
        : numbers((Number*)x.form(kKind, m)), scales((float*)(numbers + whole(x.K))), excess(scales + whole(x.K) / 64) {}
    void fill(const Tokens& x, int64_t m) const {
      alignas(64) uint16_t even[32];
      for (int i = 0; i < 32; i++) even[i] = uint16_t(2 * i % 32 + i / 16 * 32);
      const __m512i places[2] = {_mm512_load_si512(even), _mm512_add_epi16(_mm512_load_si512(even), _mm512_set1_epi16(1))};
      for (int64_t k = 0; k < whole(x.K); k += 128) {
        alignas(64) Number in_order[128] = {};
        for (int64_t i = 0; i < 128 && k + i < x.K; i += 64) {
          const float scale = scales[(k + i) / 64] = Numbers::take(x, m, k + i, in_order + i);
          for (int j = 0; j < 64; j += kGroup) excess[(k + i + j) / kGroup] = Numbers::excess(in_order + i + j, scale);
        }
        if (k + 64 >= x.K) scales[k / 64 + 1] = 1;
        for (int part = 0; part < 4; part++) {
          const Number* a = in_order + part % 2 * 32;
          const __m512i left = _mm512_loadu_si512(a), right = _mm512_loadu_si512(a + 64);
          _mm512_storeu_si512(numbers + k + 32 * part, _mm512_permutex2var_epi16(left, places[part / 2], right));
        }
      }
    }
  };

  template <int M>
  void dot(int64_t n, const Tokens& x, int64_t first, float* out) const {
    __m512 sum[2][M];
    for (int m = 0; m < M; m++) sum[0][m] = sum[1][m] = _mm512_setzero_ps();
    const uint8_t* w = weight + n * (x.K / 2);
    const uint16_t* s = scales + n * (x.K / kGroup);
    auto step = [&](int64_t k, __m512i words, uint64_t four) {
      fetch_ahead(w + k / 2);
      const __m512 s0 = Groups::template weight_scales<0>(four), s1 = Groups::template weight_scales<1>(four);
      __m512i part[4];
      for (int i = 0; i < 4; i++) part[i] = Numbers::nibbles(words, i);
      for (int m = 0; m < M; m++) {
        const Form token(x, first + m);
        const Number* at = token.numbers + k;
        const __m512 t = Numbers::token_scales(token.scales + k / 64);
        sum[0][m] = _mm512_fmadd_ps(_mm512_mul_ps(s0, t), Numbers::products(part[0], at, part[2], at + 64), sum[0][m]);
        sum[1][m] = _mm512_fmadd_ps(_mm512_mul_ps(s1, t), Numbers::products(part[1], at + 32, part[3], at + 96), sum[1][m]);
      }
    };
    int64_t k = 0;
    for (; k + 128 <= x.K; k += 128) {
      uint64_t four;
      std::memcpy(&four, s + k / kGroup, 8);
      step(k, _mm512_loadu_si512(w + k / 2), four);
    }
    if (k < x.K) {
      uint32_t two;
      std::memcpy(&two, s + k / kGroup, 4);
      step(k, _mm512_maskz_loadu_epi64(0x0f, w + k / 2), two);
    }
    for (int64_t g = 0; g < x.K / kGroup; g += 16) {
      const int64_t left = x.K / kGroup - g;
      const __mmask16 mask = left < 16 ? (1u << left) - 1 : 0xffff;
      __m512 wide = Groups::widened(_mm256_maskz_loadu_epi16(mask, s + g));
      if (Groups::kHaveLeast) {  // of what was summed, scale times (more - 8) less the least weight is too much
        const __m512 low = Groups::widened(_mm256_maskz_loadu_epi16(mask, least + n * (x.K / kGroup) + g));
        wide = _mm512_mul_ps(wide, _mm512_set1_ps((Numbers::kMore - 8) / Numbers::kMore));
        wide = _mm512_fnmadd_ps(low, _mm512_set1_ps(1 / Numbers::kMore), wide);
      }
      for (int m = 0; m < M; m++)
        sum[0][m] = _mm512_fnmadd_ps(wide, _mm512_maskz_loadu_ps(mask, Form(x, first + m).excess + g), sum[0][m]);
    }
    for (int m = 0; m < M; m++) out[m] = _mm512_reduce_add_ps(_mm512_add_ps(sum[0][m], sum[1][m]));
  }
};

using Int4Rows = Int4RowsOf<PlainGroups>;

}  // namespace
