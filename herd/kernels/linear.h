// y = x W^T for weights of 16, 8 and 4 bits, llama.cpp's blocks among them, activations in bfloat16, sums in float32.
//
// Few tokens: a weight is read once, row after row, so that memory streams, and weights of 8 and 4 bits meet tokens in a
// form of their own (`Form`), since otherwise widening them takes longer than reading them. Above kFewTokens rows are
// widened to bfloat16 four at a time and meet four tokens at a time. Many tokens: 64 rows at a time become pairs in the
// second-level cache and go through a product of matrices.
#pragma once

#include <vector>

#include "int4.h"

namespace {

struct Bf16Weights {
  const bf16* weight;

  template <int M>
  void dot(int64_t n, const Tokens& x, int64_t first, float* out) const {
    __m512 sum[2][M];
    for (int m = 0; m < M; m++) sum[0][m] = sum[1][m] = _mm512_setzero_ps();
    const bf16* w = weight + n * x.K;
    for (int64_t k = 0; k < x.K; k += 64)
      for (int half = 0; half < 2; half++) {
        const bf16* at = w + k + 32 * half;
        fetch_ahead(at);
        const __m512bh w0 = load_bf16(at);
        for (int m = 0; m < M; m++)
          sum[half][m] = _mm512_dpbf16_ps(sum[half][m], w0, load_bf16(x.data + (k + 32 * half) * x.M + (first + m) * 32));
      }
    for (int m = 0; m < M; m++) out[m] = _mm512_reduce_add_ps(_mm512_add_ps(sum[0][m], sum[1][m]));
  }
  const bf16* wide(int64_t n, int64_t k, int64_t, int64_t K, bf16*) const { return weight + n * K + k; }
  const char* at(int64_t n, int64_t k, int64_t K) const { return (const char*)(weight + n * K + k); }
  float scale(int64_t) const { return 1.0f; }
};

// One scale a row.
struct Int8Weights {
  static constexpr int kKind = 1;
  const int8_t* weight;
  const bf16* scales;

  // A token in whole numbers, a scale for 64 columns.
  struct Form {
    int16_t* numbers;
    float *scales, *sums;  // of 64 columns; of 32

    static int64_t bytes(int64_t K) { return 2 * K + (K / 64 + K / kGroup) * sizeof(float); }
    Form(const Tokens& x, int64_t m)
        : numbers((int16_t*)x.form(kKind, m)), scales((float*)(numbers + x.K)), sums(scales + x.K / 64) {}
    void fill(const Tokens& x, int64_t m) const {
      for (int64_t k = 0; k < x.K; k += 64) {
        scales[k / 64] = whole_numbers(x, m, k, numbers + k);
        for (int64_t g = k / kGroup; g < k / kGroup + 2; g++) {
          int sum = 0;
          for (int i = 0; i < kGroup; i++) sum += numbers[g * kGroup + i];
          sums[g] = scales[k / 64] * float(sum);
        }
      }
    }
  };

  template <int M>
  void dot(int64_t n, const Tokens& x, int64_t first, float* out) const {
    __m512 sum[M];
    for (int m = 0; m < M; m++) sum[m] = _mm512_setzero_ps();
    const int8_t* w = weight + n * x.K;
    for (int64_t k = 0; k < x.K; k += 64) {
      fetch_ahead(w + k);
      const __m512i low = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)(w + k)));
      const __m512i high = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)(w + k + 32)));
      for (int m = 0; m < M; m++) {
        const Form token(x, first + m);
        __m512i whole = _mm512_dpwssd_epi32(_mm512_setzero_si512(), low, _mm512_loadu_si512(token.numbers + k));
        whole = _mm512_dpwssd_epi32(whole, high, _mm512_loadu_si512(token.numbers + k + 32));
        sum[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), _mm512_set1_ps(token.scales[k / 64]), sum[m]);
      }
    }
    for (int m = 0; m < M; m++) out[m] = _mm512_reduce_add_ps(sum[m]) * widen(scales[n]);
  }
  const bf16* wide(int64_t n, int64_t k, int64_t count, int64_t K, bf16* room) const {
    for (int64_t i = 0; i < count; i += 32) {  // integers up to 256 are bfloat16 numbers
      const __m128i* at = (const __m128i*)(weight + n * K + k + i);
      const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at)));
      const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at + 1)));
      _mm512_storeu_si512(room + i, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
    return room;
  }
  const char* at(int64_t n, int64_t k, int64_t K) const { return (const char*)(weight + n * K + k); }
  float scale(int64_t n) const { return widen(scales[n]); }
};

// 64 weights of 4 bits as bfloat16 numbers, each rounded once after its scale.
inline void widen_int4_step(const uint8_t* weight, const bf16* scales, bf16* out) {
  const __m512 nibbles = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  const __m512i bytes = widen_bytes(weight);
  for (int half = 0; half < 2; half++) {
    const __m512 scaled = _mm512_mul_ps(nibbles, _mm512_set1_ps(widen(scales[half])));
    const __m512i table = (__m512i)_mm512_cvtne2ps_pbh(scaled, scaled);
    _mm512_storeu_si512(out + 32 * half, _mm512_permutexvar_epi16(_mm512_srli_epi16(bytes, 4 * half), table));
  }
}

// llama.cpp's blocks of more than 4 bits: a float16 scale for `size` weights of 8 bits, and where `least` is not null what
// each 32 of them begin at.
template <int size>
struct Int8Blocks {
  using Form = Int8Weights::Form;
  const int8_t* weight;
  const uint16_t *scales, *least;

  static __m128 scales_of_64(const uint16_t* at) {
    uint64_t four = 0;
    std::memcpy(&four, at, 128 / size);
    return widen_halfs(four);
  }
  template <int M>
  void dot(int64_t n, const Tokens& x, int64_t first, float* out) const {
    __m512 sum[2][M];
    for (int m = 0; m < M; m++) sum[0][m] = sum[1][m] = _mm512_setzero_ps();
    const int8_t* w = weight + n * x.K;
    const uint16_t* s = scales + n * (x.K / size);
    for (int64_t k = 0; k < x.K; k += 64) {
      fetch_ahead(w + k);
      const __m512i low = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)(w + k)));
      const __m512i high = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)(w + k + 32)));
      const __m128 four = scales_of_64(s + k / size);
      const __m512 s0 = size == 32 ? spread<0, 0>(four) : spread<0, 1>(four);
      const __m512 s1 = size == 32 ? spread<1, 1>(four) : spread<2, 3>(four);
      for (int m = 0; m < M; m++) {
        const Form token(x, first + m);
        const __m512i a = _mm512_dpwssd_epi32(_mm512_setzero_si512(), low, _mm512_loadu_si512(token.numbers + k));
        const __m512i b = _mm512_dpwssd_epi32(_mm512_setzero_si512(), high, _mm512_loadu_si512(token.numbers + k + 32));
        const __m512 t = _mm512_set1_ps(token.scales[k / 64]);
        sum[0][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(a), _mm512_mul_ps(s0, t), sum[0][m]);
        sum[1][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(b), _mm512_mul_ps(s1, t), sum[1][m]);
      }
    }
    for (int64_t g = 0; least != nullptr && g < x.K / kGroup; g += 16) {
      const int64_t left = x.K / kGroup - g;
      const __mmask16 mask = left < 16 ? (1u << left) - 1 : 0xffff;
      const __m512 low = widen_halfs16(_mm256_maskz_loadu_epi16(mask, least + n * (x.K / kGroup) + g));
      for (int m = 0; m < M; m++)
        sum[0][m] = _mm512_fmadd_ps(low, _mm512_maskz_loadu_ps(mask, Form(x, first + m).sums + g), sum[0][m]);
    }
    for (int m = 0; m < M; m++) out[m] = _mm512_reduce_add_ps(_mm512_add_ps(sum[0][m], sum[1][m]));
  }
  const bf16* wide(int64_t n, int64_t k, int64_t count, int64_t K, bf16* room) const {
    for (int64_t i = 0; i < count; i += 16) {
      const int64_t at = n * K + k + i;
      const uint64_t two = scales[at / size] | uint64_t(least ? least[at / kGroup] : 0) << 16;
      const __m128 wide = widen_halfs(two);
      const __m512 number = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(weight + at))));
      narrow16(room + i, _mm512_fmadd_ps(number, spread<0, 0>(wide), spread<1, 1>(wide)));
    }
    return room;
  }
  const char* at(int64_t n, int64_t k, int64_t K) const { return (const char*)(weight + n * K + k); }
  float scale(int64_t) const { return 1.0f; }
};

// 64 weights of two blocks of 4 bits as bfloat16 numbers, each rounded once.
inline void widen_block_step(const uint8_t* weight, const uint16_t* scales, const uint16_t* least, bf16* out) {
  const __m512 nibbles = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i bytes = widen_bytes(weight);
  const __m128 four = widen_halfs(scales[0] | uint64_t(scales[1]) << 16 | uint64_t(least[0]) << 32 | uint64_t(least[1]) << 48);
  const __m512 first = _mm512_fmadd_ps(nibbles, spread<0, 0>(four), spread<2, 2>(four));
  const __m512 last = _mm512_fmadd_ps(nibbles, spread<1, 1>(four), spread<3, 3>(four));
  _mm512_storeu_si512(out, _mm512_permutexvar_epi16(bytes, (__m512i)_mm512_cvtne2ps_pbh(first, first)));
  const __m512i high = _mm512_srli_epi16(bytes, 4);
  _mm512_storeu_si512(out + 32, _mm512_permutexvar_epi16(high, (__m512i)_mm512_cvtne2ps_pbh(last, last)));
}

struct Int4Blocks : Int4RowsOf<BlockGroups> {
  const bf16* wide(int64_t n, int64_t k, int64_t count, int64_t K, bf16* room) const {
    for (int64_t i = 0; i < count; i += 64) {
      const int64_t at = n * K + k + i;
      widen_block_step(weight + at / 2, scales + at / kGroup, least + at / kGroup, room + i);
    }
    return room;
  }
  const char* at(int64_t n, int64_t k, int64_t K) const { return (const char*)(weight + (n * K + k) / 2); }
  float scale(int64_t) const { return 1.0f; }
};

struct Int4Weights : Int4Rows {
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

// Token m is there: give it the forms that are wanted.
inline void fill_forms(const Tokens& x, int64_t m) {
  if (x.forms[Int8Weights::kKind]) Int8Weights::Form(x, m).fill(x, m);
  if (x.forms[Int4Weights::kKind]) Int4Weights::Form(x, m).fill(x, m);
}

// Room for tokens in the forms (a bit each) that weights will read.
class TokenRoom {
 public:
  Tokens tokens;

  TokenRoom(int64_t M, int64_t K, int64_t forms) : tokens{nullptr, M, K, Tokens::block_width(M)}, numbers_(M * K) {
    tokens.data = numbers_.data();
    const int64_t bytes[] = {0, Int8Weights::Form::bytes(K), Int4Weights::Form::bytes(K)};
    for (int64_t kind = 1; kind < 3 && M <= kFewTokens; kind++) {
      if (!(forms >> kind & 1)) continue;
      forms_[kind].resize(M * (tokens.form_bytes[kind] = (bytes[kind] + 63) / 64 * 64));
      tokens.forms[kind] = forms_[kind].data();
    }
  }
  TokenRoom(const TokenRoom&) = delete;

 private:
  std::vector<bf16> numbers_;
  std::vector<char> forms_[3];
};

// Few tokens: row after row.
template <class Weights>
void few(const Weights& w, const Tokens& x, int64_t n, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i++)
    for (int64_t m = 0; m < x.M; m += kTogether) {
      const int64_t tokens = std::min(kTogether, x.M - m);
      float sums[kTogether];
      switch (tokens) {
        case 1: w.template dot<1>(n + i, x, m, sums); break;
        case 2: w.template dot<2>(n + i, x, m, sums); break;
        case 3: w.template dot<3>(n + i, x, m, sums); break;
        default: w.template dot<4>(n + i, x, m, sums);
      }
      for (int64_t j = 0; j < tokens; j++) out[(m + j) * kPanel + i] = sums[j];
    }
}

// The weights that come next, fetched into the second-level cache a few lines at a time while others are multiplied. Each
// line is asked for twice, four rows ahead and eight: a processor drops what it is asked for while too much is under way.
struct Ahead {
  const char* at;
  int64_t lines;  // each time

  Ahead(const char* at, const char* end, int64_t times) : at(at), lines(((end - at) / 64 + times - 1) / times) {}
  void fetch() {
    for (int64_t i = 0; i < lines; i++, at += 64) _mm_prefetch(at, _MM_HINT_T1);
  }
};

template <int R, int M>
inline void tile(const bf16* const (&w)[4], const Tokens& x, int64_t m, float* out, Ahead& ahead) {
  __m512 sum[R][M];
  for (int r = 0; r < R; r++)
    for (int j = 0; j < M; j++) sum[r][j] = _mm512_setzero_ps();
  const bf16* at = x.data + m * kStripe;
  for (int64_t k = 0; k < x.K; k += kStripe, at += x.M * kStripe) {
    __m512bh token[M];
    for (int j = 0; j < M; j++) token[j] = load_bf16(at + j * kStripe);
    ahead.fetch();
    for (int r = 0; r < R; r++) {
      const __m512bh row = load_bf16(w[r] + k);
      for (int j = 0; j < M; j++) sum[r][j] = _mm512_dpbf16_ps(sum[r][j], row, token[j]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int j = 0; j < M; j++) out[(m + j) * kPanel + r] = _mm512_reduce_add_ps(sum[r][j]);
}

template <int R>
void tiles(const bf16* const (&w)[4], const Tokens& x, float* out, Ahead ahead) {
  int64_t m = 0;
  for (; m + 4 <= x.M; m += 4) tile<R, 4>(w, x, m, out, ahead);
  switch (x.M - m) {
    case 3: tile<R, 3>(w, x, m, out, ahead); break;
    case 2: tile<R, 2>(w, x, m, out, ahead); break;
    case 1: tile<R, 1>(w, x, m, out, ahead); break;
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
    const int64_t next = n + i + 4;  // past the last row it does no harm
    const Ahead ahead(w.at(next, 0, x.K), w.at(next + 8, 0, x.K), (x.M + 3) / 4 * (x.K / kStripe));
    if (rows == 4) tiles<4>(wide, x, out + i, ahead);
    for (int64_t r = 0; rows < 4 && r < rows; r++) {
      const bf16* one[4] = {wide[r]};
      tiles<1>(one, x, out + i + r, ahead);
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

// Any linear layer, as it travels over the border: kind 0 is bfloat16, 1 int8, 2 int4, 3 blocks of 4 bits, 4 and 5 blocks
// of 8 bits with a scale for 32 and for 16 weights.
struct Linear {
  int64_t kind;
  const void* weight;
  const uint16_t *scales, *least;
  int64_t N, K;  // K as it is stored: a multiple of 64

  int64_t form() const { return kind < 3 ? kind : kind == 3 ? Int4Weights::kKind : Int8Weights::kKind; }
  int64_t num_panels() const { return (N + kPanel - 1) / kPanel; }

  // Rows `panel` x 64 and on against all tokens: out (M, 64) float32; how many rows there were.
  int64_t panel(int64_t number, const Tokens& x, float* out, Scratch& scratch) const {
    const int64_t n = number * kPanel, count = std::min<int64_t>(kPanel, N - n);
    if (kind == 0) multiply(Bf16Weights{(const bf16*)weight}, x, n, count, out, scratch);
    if (kind == 1) multiply(Int8Weights{(const int8_t*)weight, scales}, x, n, count, out, scratch);
    if (kind == 2) multiply(Int4Weights{{(const uint8_t*)weight, scales, least}}, x, n, count, out, scratch);
    if (kind == 3) multiply(Int4Blocks{{(const uint8_t*)weight, scales, least}}, x, n, count, out, scratch);
    if (kind == 4) multiply(Int8Blocks<32>{(const int8_t*)weight, scales, least}, x, n, count, out, scratch);
    if (kind == 5) multiply(Int8Blocks<16>{(const int8_t*)weight, scales, least}, x, n, count, out, scratch);
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
