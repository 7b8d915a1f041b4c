// y = x W^T for weights of 16, 8 and 4 bits, activations in bfloat16, sums in float32.
//
// Few tokens: a weight is read once, row after row, so that memory streams; above kFewTokens rows are widened four at a
// time and meet four tokens at a time. Many tokens: 64 rows at a time become pairs in the second-level cache and go
// through a product of matrices. Weights of 4 and 8 bits become bfloat16 by table look-up, which is exact.
#pragma once

#include <algorithm>
#include <vector>

#include "matrix.h"

namespace {

constexpr int kGroup = 32;         // weights of 4 bits that share a scale
constexpr int kFewTokens = 4;      // tokens that one pass over the weights serves
constexpr int kManyTokens = 28;    // from here on a product of matrices is quicker
constexpr int kPanel = 64;         // weight rows that are worked on at a time
constexpr int64_t kDepth = 512;    // columns of a panel that stay in the cache
constexpr int64_t kSlice = 48;     // tokens of a product between which the next weights are fetched
constexpr int64_t kStripe = 32;    // columns of few tokens that lie side by side

// Tokens cut into blocks of columns, so that what is read together lies together.
struct Tokens {
  const bf16* data;
  int64_t M, K, width;  // K a multiple of 64, `width` columns a block

  static int64_t block_width(int64_t M) { return M < kManyTokens ? kStripe : kDepth; }
  const bf16* at(int64_t m, int64_t k) const {
    const int64_t start = k / width * width;
    return data + start * M + m * std::min(width, K - start) + (k - start);
  }
};

struct Bf16Weights {
  const bf16* weight;

  template <int M>
  void dot(int64_t n, int64_t K, const bf16* x, float* out) const {
    __m512 sum[2][M];
    for (int m = 0; m < M; m++) sum[0][m] = sum[1][m] = _mm512_setzero_ps();
    const bf16* w = weight + n * K;
    for (int64_t k = 0; k < K; k += 64)
      for (int half = 0; half < 2; half++) {
        const bf16* at = w + k + 32 * half;
        _mm_prefetch((const char*)(at + 2048), _MM_HINT_T0);
        const __m512bh w0 = load_bf16(at);
        for (int m = 0; m < M; m++) sum[half][m] = _mm512_dpbf16_ps(sum[half][m], w0, load_bf16(x + (k + 32 * half) * M + m * 32));
      }
    for (int m = 0; m < M; m++) out[m] = _mm512_reduce_add_ps(_mm512_add_ps(sum[0][m], sum[1][m]));
  }
  const bf16* wide(int64_t n, int64_t k, int64_t, int64_t K, bf16*) const { return weight + n * K + k; }
  const char* at(int64_t n, int64_t k, int64_t K) const { return (const char*)(weight + n * K + k); }
  float scale(int64_t) const { return 1.0f; }
};

// One scale a row; a byte is 16 times its signed upper nibble plus its lower one.
struct Int8Weights {
  const uint8_t* weight;
  const bf16* scales;

  template <int M>
  void dot(int64_t n, int64_t K, const bf16* x, float* out) const {
    const __m512i low = nibble_table(0, 1, false), high = nibble_table(0, 16, true);
    __m512 sum[2][M];
    for (int m = 0; m < M; m++) sum[0][m] = sum[1][m] = _mm512_setzero_ps();
    const uint8_t* w = weight + n * K;
    for (int64_t k = 0; k < K; k += 64) {
      _mm_prefetch((const char*)(w + k + 4096), _MM_HINT_T0);
      for (int half = 0; half < 2; half++) {
        const __m512i bytes = widen_bytes(w + k + 32 * half);
        const __m512bh lower = (__m512bh)_mm512_permutexvar_epi16(bytes, low);
        const __m512bh upper = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(bytes, 4), high);
        for (int m = 0; m < M; m++) {
          const __m512bh x0 = load_bf16(x + (k + 32 * half) * M + m * 32);
          sum[0][m] = _mm512_dpbf16_ps(sum[0][m], lower, x0);
          sum[1][m] = _mm512_dpbf16_ps(sum[1][m], upper, x0);
        }
      }
    }
    for (int m = 0; m < M; m++) out[m] = _mm512_reduce_add_ps(_mm512_add_ps(sum[0][m], sum[1][m])) * widen(scales[n]);
  }
  const bf16* wide(int64_t n, int64_t k, int64_t count, int64_t K, bf16* room) const {
    for (int64_t i = 0; i < count; i += 16) {  // integers up to 256 are bfloat16 numbers
      const __m512i whole = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(weight + n * K + k + i)));
      narrow16(room + i, _mm512_cvtepi32_ps(whole));
    }
    return room;
  }
  const char* at(int64_t n, int64_t k, int64_t K) const { return (const char*)(weight + n * K + k); }
  float scale(int64_t n) const { return widen(scales[n]); }
};

// 64 weights of 4 bits as bfloat16 numbers, each rounded once after its scale.
inline void widen_int4_step(const uint8_t* weight, const bf16* scales, bf16* out) {
  for (int half = 0; half < 2; half++) {
    const __m512 scale = _mm512_set1_ps(widen(scales[half]));
    for (int part = 0; part < 2; part++) {
      __m512i nibbles = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(weight + 16 * part)));
      nibbles = half ? _mm512_srli_epi32(nibbles, 4) : _mm512_and_epi32(nibbles, _mm512_set1_epi32(15));
      const __m512 whole = _mm512_cvtepi32_ps(_mm512_sub_epi32(nibbles, _mm512_set1_epi32(8)));
      narrow16(out + 32 * half + 16 * part, _mm512_mul_ps(whole, scale));
    }
  }
}

// A scale for 32 weights. 64 weights are 32 bytes: the lower nibbles are the first 32, the upper ones the last 32.
struct Int4Weights {
  const uint8_t* weight;
  const bf16* scales;

  template <int M>
  void dot(int64_t n, int64_t K, const bf16* x, float* out) const {
    const __m512i table = nibble_table(-8, 1, false);
    const __m512 zero = _mm512_setzero_ps();
    __m512 sum[2][M];
    for (int m = 0; m < M; m++) sum[0][m] = sum[1][m] = zero;
    const uint8_t* w = weight + n * (K / 2);
    const bf16* s = scales + n * (K / kGroup);
    for (int64_t k = 0; k < K; k += 64) {
      _mm_prefetch((const char*)(w + k / 2 + 2048), _MM_HINT_T0);
      const __m512i bytes = widen_bytes(w + k / 2);
      const __m512bh first = (__m512bh)_mm512_permutexvar_epi16(bytes, table);
      const __m512bh last = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(bytes, 4), table);
      uint32_t two;
      std::memcpy(&two, s + k / kGroup, 4);
      const __m512 s0 = _mm512_castsi512_ps(_mm512_set1_epi32(two << 16));
      const __m512 s1 = _mm512_castsi512_ps(_mm512_set1_epi32(two & 0xffff0000u));
      for (int m = 0; m < M; m++) {
        const bf16* at = x + k * M + m * 32;
        sum[0][m] = _mm512_fmadd_ps(s0, _mm512_dpbf16_ps(zero, first, load_bf16(at)), sum[0][m]);
        sum[1][m] = _mm512_fmadd_ps(s1, _mm512_dpbf16_ps(zero, last, load_bf16(at + 32 * M)), sum[1][m]);
      }
    }
    for (int m = 0; m < M; m++) out[m] = _mm512_reduce_add_ps(_mm512_add_ps(sum[0][m], sum[1][m]));
  }
  const bf16* wide(int64_t n, int64_t k, int64_t count, int64_t K, bf16* room) const {
    for (int64_t i = 0; i < count; i += 64)
      widen_int4_step(weight + (n * K + k + i) / 2, scales + (n * K + k + i) / kGroup, room + i);
    return room;
  }
  const char* at(int64_t n, int64_t k, int64_t K) const { return (const char*)(weight + (n * K + k) / 2); }
  float scale(int64_t) const { return 1.0f; }
};

// What a thread needs beside: a panel of pairs, sums of all tokens, widened rows. It grows and stays.
struct Scratch {
  std::vector<pair> pairs = std::vector<pair>(kDepth / 2 * kPanel);
  std::vector<float> sums;
  std::vector<bf16> rows;

  float* sums_of(int64_t M) {
    if (int64_t(sums.size()) < M * kPanel) sums.resize(M * kPanel);
    return sums.data();
  }
  bf16* rows_of(int64_t count) {
    if (int64_t(rows.size()) < count) rows.resize(count);
    return rows.data();
  }
};

// Up to four tokens: row after row.
template <class Weights>
void few(const Weights& w, const Tokens& x, int64_t n, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i++) {
    float sums[kFewTokens];
    switch (x.M) {
      case 1: w.template dot<1>(n + i, x.K, x.data, sums); break;
      case 2: w.template dot<2>(n + i, x.K, x.data, sums); break;
      case 3: w.template dot<3>(n + i, x.K, x.data, sums); break;
      default: w.template dot<4>(n + i, x.K, x.data, sums);
    }
    for (int64_t m = 0; m < x.M; m++) out[m * kPanel + i] = sums[m];
  }
}

template <int R, int M>
inline void tile(const bf16* const (&w)[4], const Tokens& x, int64_t m, float* out) {
  __m512 sum[R][M];
  for (int r = 0; r < R; r++)
    for (int j = 0; j < M; j++) sum[r][j] = _mm512_setzero_ps();
  const bf16* at = x.data + m * kStripe;
  for (int64_t k = 0; k < x.K; k += kStripe, at += x.M * kStripe) {
    __m512bh token[M];
    for (int j = 0; j < M; j++) token[j] = load_bf16(at + j * kStripe);
    for (int r = 0; r < R; r++) {
      const __m512bh row = load_bf16(w[r] + k);
      for (int j = 0; j < M; j++) sum[r][j] = _mm512_dpbf16_ps(sum[r][j], row, token[j]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int j = 0; j < M; j++) out[(m + j) * kPanel + r] = _mm512_reduce_add_ps(sum[r][j]);
}

template <int R>
void tiles(const bf16* const (&w)[4], const Tokens& x, float* out) {
  int64_t m = 0;
  for (; m + 4 <= x.M; m += 4) tile<R, 4>(w, x, m, out);
  switch (x.M - m) {
    case 3: tile<R, 3>(w, x, m, out); break;
    case 2: tile<R, 2>(w, x, m, out); break;
    case 1: tile<R, 1>(w, x, m, out); break;
  }
}

// More tokens than few, fewer than many: four widened rows against all of them.
template <class Weights>
void some(const Weights& w, const Tokens& x, int64_t n, int64_t count, float* out, Scratch& scratch) {
  bf16* room = scratch.rows_of(4 * (x.K + 64));  // rows at strides of a power of two would push each other out
  for (int64_t i = 0; i < count; i += 4) {
    const int64_t rows = std::min<int64_t>(4, count - i);
    const bf16* wide[4] = {};
    for (int64_t r = 0; r < rows; r++) wide[r] = w.wide(n + i + r, 0, x.K, x.K, room + r * (x.K + 64));
    if (rows == 4) tiles<4>(wide, x, out + i);
    for (int64_t r = 0; rows < 4 && r < rows; r++) {
      const bf16* one[4] = {wide[r]};
      tiles<1>(one, x, out + i + r);
    }
    for (int64_t m = 0; m < x.M; m++)
      for (int64_t r = 0; r < rows; r++) out[m * kPanel + i + r] *= w.scale(n + i + r);
  }
}

// 64 rows of a block of columns as pairs.
template <class Weights>
void pack_block(const Weights& w, int64_t n, int64_t count, int64_t k, int64_t depth, int64_t K, pair* pairs, bf16* room) {
  for (int64_t i = 0; i < count; i += 16) {
    const bf16* wide[16];
    for (int64_t r = 0; r < 16; r++)  // rows past the end repeat the last; nobody reads their sums
      wide[r] = w.wide(n + std::min(i + r, count - 1), k, depth, K, room + r * kDepth);
    for (int64_t c = 0; c < depth; c += 32) {
      __m512i r[16];
      for (int j = 0; j < 16; j++) r[j] = _mm512_loadu_si512(wide[j] + c);
      transpose16(r);
      for (int j = 0; j < 16; j++) _mm512_storeu_si512(pairs + (c / 2 + j) * kPanel + i, r[j]);
    }
  }
}

// Many tokens: the panel's rows as pairs, block by block; meanwhile the next block comes into the cache.
template <class Weights>
void many(const Weights& w, const Tokens& x, int64_t n, int64_t count, float* out, Scratch& scratch) {
  pair* pairs = scratch.pairs.data();
  bf16* room = scratch.rows_of(16 * kDepth);
  const int64_t columns = (count + 15) / 16 * 16, slices = (x.M + kSlice - 1) / kSlice;
  for (int64_t k = 0; k < x.K; k += kDepth) {
    const int64_t depth = std::min(kDepth, x.K - k);
    pack_block(w, n, count, k, depth, x.K, pairs, room);
    const bool last = k + kDepth >= x.K;
    const int64_t next_n = last ? n + kPanel : n, next_k = last ? 0 : k + kDepth;
    for (int64_t slice = 0; slice < slices; slice++) {
      for (int64_t row = slice * kPanel / slices; row < (slice + 1) * kPanel / slices; row++) {
        const char* end = w.at(next_n + row, std::min(next_k + kDepth, x.K), x.K);  // past the last row it does no harm
        for (const char* at = w.at(next_n + row, next_k, x.K); at < end; at += 64) _mm_prefetch(at, _MM_HINT_T1);
      }
      const int64_t m = slice * kSlice, rows = std::min(kSlice, x.M - m);
      gemm(rows, int(columns), int(depth / 2), x.at(m, k), depth, pairs, kPanel, out + m * kPanel, kPanel, k > 0);
    }
  }
  for (int64_t i = 0; i < count; i++) {
    const float scale = w.scale(n + i);
    if (scale != 1.0f)
      for (int64_t m = 0; m < x.M; m++) out[m * kPanel + i] *= scale;
  }
}

// Any linear layer, as it travels over the border: kind 0 is bfloat16, 1 int8, 2 int4.
struct Linear {
  int64_t kind;
  const void* weight;
  const bf16* scales;
  int64_t N, K;  // K as it is stored: a multiple of 64

  int64_t num_panels() const { return (N + kPanel - 1) / kPanel; }

  // Rows `panel` x 64 and on against all tokens: out (M, 64) float32; how many rows there were.
  int64_t panel(int64_t number, const Tokens& x, float* out, Scratch& scratch) const {
    const int64_t n = number * kPanel, count = std::min<int64_t>(kPanel, N - n);
    if (kind == 0) multiply(Bf16Weights{(const bf16*)weight}, x, n, count, out, scratch);
    if (kind == 1) multiply(Int8Weights{(const uint8_t*)weight, scales}, x, n, count, out, scratch);
    if (kind == 2) multiply(Int4Weights{(const uint8_t*)weight, scales}, x, n, count, out, scratch);
    return count;
  }

 private:
  template <class Weights>
  static void multiply(const Weights& w, const Tokens& x, int64_t n, int64_t count, float* out, Scratch& scratch) {
    if (x.M <= kFewTokens) few(w, x, n, count, out);
    else if (x.M < kManyTokens) some(w, x, n, count, out, scratch);
    else many(w, x, n, count, out, scratch);
  }
};

}  // namespace
