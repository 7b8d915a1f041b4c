// Activations as linear layers read them, and the sizes in which they work.
#pragma once

#include <algorithm>
#include <cmath>

#include "matrix.h"

namespace {

constexpr int kGroup = 32;         // weights of 4 bits that share a scale
constexpr int kManyTokens = 28;    // from here on a product of matrices is quicker
constexpr int64_t kFewTokens = kFewRegisters ? kManyTokens - 1 : 4;  // up to here weights are taken row by row
constexpr int64_t kTogether = 4;   // tokens that one pass over a row serves
constexpr int kPanel = 64;         // weight rows that are worked on at a time
constexpr int64_t kDepth = 512;    // columns of a panel that stay in the cache
constexpr int64_t kSlice = 48;     // tokens of a product between which the next weights are fetched
constexpr int64_t kStripe = 32;    // columns of few tokens that lie side by side

// Tokens cut into blocks of columns, so that what is read together lies together.
struct Tokens {
  const bf16* data;
  int64_t M, K, width;              // K a multiple of 64, `width` columns a block
  char* forms[3] = {};              // of few tokens, by the kind of weights that read them; null where none do
  int64_t form_bytes[3] = {};       // of one token

  static int64_t block_width(int64_t M) { return M < kManyTokens ? kStripe : kDepth; }
  const bf16* at(int64_t m, int64_t k) const {
    const int64_t start = k / width * width;
    return data + start * M + m * std::min(width, K - start) + (k - start);
  }
  char* form(int64_t kind, int64_t m) const { return forms[kind] + m * form_bytes[kind]; }
  bool have_forms() const { return forms[1] || forms[2]; }
};

// Weights that are read as one stream: what comes a page later, into the second-level cache.
inline void fetch_ahead(const void* at) { _mm_prefetch((const char*)at + 4096, _MM_HINT_T1); }

// Columns k to k + 64 of a token as multiples of 1/32767 of the largest among them (a bfloat16 number is rounded to 1/256
// of itself), so that integers meet integers; what one of them is worth.
inline float whole_numbers(const Tokens& x, int64_t m, int64_t k, int16_t* to) {
  __m512 values[4];
  __m512i most = _mm512_setzero_si512();  // bits of a number without its sign: not-a-numbers are above all others
  for (int i = 0; i < 4; i++) {
    values[i] = widen16(x.at(m, k + i / 2 * 32) + i % 2 * 16);
    most = _mm512_max_epi32(most, _mm512_castps_si512(_mm512_abs_ps(values[i])));
  }
  const int bits = _mm512_reduce_max_epi32(most);
  float largest;
  std::memcpy(&largest, &bits, 4);
  const __m512 inverse = _mm512_set1_ps(largest > 0 ? 32767 / largest : 0);
  for (int i = 0; i < 4; i++) {
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(values[i], inverse));
    _mm256_storeu_si256((__m256i*)(to + 16 * i), _mm512_cvtsepi32_epi16(whole));
  }
  return std::isfinite(largest) ? largest / 32767 : NAN;
}

}  // namespace
