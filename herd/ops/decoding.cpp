// Kernels for decoding on processors with AVX-512 and bfloat16 instructions: a token reads every weight and the whole
// cache once, so what counts is that nothing is read twice and the arithmetic hides behind the reading.
//
// Weights of 4 and 8 bits become bfloat16 by table look-up (exact) and meet bfloat16 activations in products that are
// summed in float32; the activations are never rounded further. Each function's plain PyTorch twin is named beside it
// in herd/ops. Memory is row-major, lengths are counts of elements.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

typedef uint16_t bf16;

namespace {

constexpr int kTokens = 4;  // activations that one pass over a weight serves
constexpr int kRows = 4;    // weight rows that share a load of activations
constexpr int64_t kRowsAtOnce = 64;
constexpr int kGroup = 32;  // weights of 4 bits that share a scale

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

// Weights as they are.
struct Bf16Weights {
  const bf16* weight;
  static constexpr int kStep = 64;

  template <int M, int R>
  void dot(int64_t n, int64_t K, const bf16* x, __m512 (&sum)[R][M]) const {
    __m512 more[R][M];
    for (int r = 0; r < R; r++)
      for (int m = 0; m < M; m++) more[r][m] = _mm512_setzero_ps();
    const bf16* w = weight + n * K;
    for (int64_t k = 0; k < K; k += kStep) {
      __m512bh x0[M], x1[M];
      for (int m = 0; m < M; m++) x0[m] = load_bf16(x + m * K + k), x1[m] = load_bf16(x + m * K + k + 32);
      for (int r = 0; r < R; r++) {
        const bf16* at = w + r * K + k;
        _mm_prefetch((const char*)(at + R * K), _MM_HINT_T0);
        _mm_prefetch((const char*)(at + R * K + 32), _MM_HINT_T0);
        __m512bh w0 = load_bf16(at), w1 = load_bf16(at + 32);
        for (int m = 0; m < M; m++) {
          sum[r][m] = _mm512_dpbf16_ps(sum[r][m], w0, x0[m]);
          more[r][m] = _mm512_dpbf16_ps(more[r][m], w1, x1[m]);
        }
      }
    }
    for (int r = 0; r < R; r++)
      for (int m = 0; m < M; m++) sum[r][m] = _mm512_add_ps(sum[r][m], more[r][m]);
  }
  float scale(int64_t) const { return 1.0f; }
};

// One scale a row; a byte is 16 times its signed upper nibble plus its lower one.
struct Int8Weights {
  const uint8_t* weight;
  const bf16* scales;
  static constexpr int kStep = 32;

  template <int M, int R>
  void dot(int64_t n, int64_t K, const bf16* x, __m512 (&sum)[R][M]) const {
    const __m512i low = nibble_table(0, 1, false), high = nibble_table(0, 16, true);
    __m512 more[R][M];
    for (int r = 0; r < R; r++)
      for (int m = 0; m < M; m++) more[r][m] = _mm512_setzero_ps();
    const uint8_t* w = weight + n * K;
    for (int64_t k = 0; k < K; k += kStep) {
      __m512bh xs[M];
      for (int m = 0; m < M; m++) xs[m] = load_bf16(x + m * K + k);
      for (int r = 0; r < R; r++) {
        const uint8_t* at = w + r * K + k;
        _mm_prefetch((const char*)(at + R * K), _MM_HINT_T0);
        __m512i bytes = widen_bytes(at);
        __m512bh lower = (__m512bh)_mm512_permutexvar_epi16(bytes, low);
        __m512bh upper = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(bytes, 4), high);
        for (int m = 0; m < M; m++) {
          sum[r][m] = _mm512_dpbf16_ps(sum[r][m], lower, xs[m]);
          more[r][m] = _mm512_dpbf16_ps(more[r][m], upper, xs[m]);
        }
      }
    }
    for (int r = 0; r < R; r++)
      for (int m = 0; m < M; m++) sum[r][m] = _mm512_add_ps(sum[r][m], more[r][m]);
  }
  float scale(int64_t n) const { return widen(scales[n]); }
};

// A scale for 32 weights. 64 weights are 32 bytes: the lower nibbles are the first 32, the upper ones the last 32.
struct Int4Weights {
  const uint8_t* weight;
  const bf16* scales;
  static constexpr int kStep = 2 * kGroup;

  template <int M, int R>
  void dot(int64_t n, int64_t K, const bf16* x, __m512 (&sum)[R][M]) const {
    const __m512i table = nibble_table(-8, 1, false);
    const __m512 zero = _mm512_setzero_ps();
    const uint8_t* w = weight + n * (K / 2);
    const bf16* s = scales + n * (K / kGroup);
    for (int64_t k = 0; k < K; k += kStep) {
      __m512bh x0[M], x1[M];
      for (int m = 0; m < M; m++) x0[m] = load_bf16(x + m * K + k), x1[m] = load_bf16(x + m * K + k + 32);
      for (int r = 0; r < R; r++) {
        const uint8_t* at = w + (r * K + k) / 2;
        _mm_prefetch((const char*)(at + R * K / 2), _MM_HINT_T0);
        __m512i bytes = widen_bytes(at);
        __m512bh first = (__m512bh)_mm512_permutexvar_epi16(bytes, table);
        __m512bh last = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(bytes, 4), table);
        uint32_t pair;
        std::memcpy(&pair, s + (r * K + k) / kGroup, 4);
        __m512 s0 = _mm512_castsi512_ps(_mm512_set1_epi32(pair << 16));
        __m512 s1 = _mm512_castsi512_ps(_mm512_set1_epi32(pair & 0xffff0000u));
        for (int m = 0; m < M; m++) {
          sum[r][m] = _mm512_fmadd_ps(s0, _mm512_dpbf16_ps(zero, first, x0[m]), sum[r][m]);
          sum[r][m] = _mm512_fmadd_ps(s1, _mm512_dpbf16_ps(zero, last, x1[m]), sum[r][m]);
        }
      }
    }
  }
  float scale(int64_t) const { return 1.0f; }
};

template <int M, int R, class Weights>
inline void rows_by_tokens(const Weights& weights, const bf16* x, bf16* y, int64_t n, int64_t N, int64_t K) {
  __m512 sum[R][M];
  for (int r = 0; r < R; r++)
    for (int m = 0; m < M; m++) sum[r][m] = _mm512_setzero_ps();
  weights.template dot<M, R>(n, K, x, sum);
  for (int r = 0; r < R; r++)
    for (int m = 0; m < M; m++)
      y[m * N + n + r] = round_to_bf16(_mm512_reduce_add_ps(sum[r][m]) * weights.scale(n + r));
}

template <int R, class Weights>
inline void rows(const Weights& weights, const bf16* x, bf16* y, int64_t n, int64_t M, int64_t N, int64_t K) {
  int64_t m = 0;
  for (; m + kTokens <= M; m += kTokens) rows_by_tokens<kTokens, R>(weights, x + m * K, y + m * N, n, N, K);
  switch (M - m) {
    case 3: rows_by_tokens<3, R>(weights, x + m * K, y + m * N, n, N, K); break;
    case 2: rows_by_tokens<2, R>(weights, x + m * K, y + m * N, n, N, K); break;
    case 1: rows_by_tokens<1, R>(weights, x + m * K, y + m * N, n, N, K); break;
  }
}

// x (M, K) times the weights' (N, K) transpose -> y (M, N).
template <class Weights>
void multiply(const Weights& weights, const bf16* x, bf16* y, int64_t M, int64_t N, int64_t K, int num_threads) {
  const int64_t num_parts = (N + kRowsAtOnce - 1) / kRowsAtOnce;
#pragma omp parallel for num_threads(num_threads) schedule(static)
  for (int64_t part = 0; part < num_parts; part++) {
    int64_t n = part * kRowsAtOnce;
    const int64_t end = std::min(N, n + kRowsAtOnce);
    for (; n + kRows <= end; n += kRows) rows<kRows>(weights, x, y, n, M, N, K);
    for (; n < end; n++) rows<1>(weights, x, y, n, M, N, K);
  }
}

// 64 weights of 4 bits as bfloat16 numbers, each rounded once after its scale.
inline void widen_int4_step(const uint8_t* weight, const bf16* scales, bf16* out) {
  for (int half = 0; half < 2; half++) {
    const __m512 scale = _mm512_set1_ps(widen(scales[half]));
    for (int part = 0; part < 2; part++) {
      __m512i nibbles = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(weight + 16 * part)));
      nibbles = half ? _mm512_srli_epi32(nibbles, 4) : _mm512_and_epi32(nibbles, _mm512_set1_epi32(15));
      __m512 whole = _mm512_cvtepi32_ps(_mm512_sub_epi32(nibbles, _mm512_set1_epi32(8)));
      _mm256_storeu_si256((__m256i*)(out + 32 * half + 16 * part), (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(whole, scale)));
    }
  }
}

// Sum of squared errors when 32 weights are rounded to multiples -8..7 of a scale, which a bfloat16 holds exactly.
inline float error_of(const __m512 (&w)[2], float scale, __m512 (&multiples)[2]) {
  const __m512 inverse = _mm512_set1_ps(scale == 0 ? 0 : 1 / scale), s = _mm512_set1_ps(scale);
  __m512 sum = _mm512_setzero_ps();
  for (int i = 0; i < 2; i++) {
    __m512 q = _mm512_roundscale_ps(_mm512_mul_ps(w[i], inverse), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    multiples[i] = _mm512_min_ps(_mm512_max_ps(q, _mm512_set1_ps(-8)), _mm512_set1_ps(7));
    __m512 error = _mm512_fnmadd_ps(multiples[i], s, w[i]);
    sum = _mm512_fmadd_ps(error, error, sum);
  }
  return _mm512_reduce_add_ps(sum);
}

// The scale of least squared error among the given shares of the one that just holds the largest weight.
inline void quantize_group(const float* at, const float* shares, int num_shares, float* best_scale, __m512 (&best)[2]) {
  const __m512 w[2] = {_mm512_loadu_ps(at), _mm512_loadu_ps(at + 16)};
  const float highest = std::max(_mm512_reduce_max_ps(w[0]), _mm512_reduce_max_ps(w[1]));
  const float lowest = std::min(_mm512_reduce_min_ps(w[0]), _mm512_reduce_min_ps(w[1]));
  const float largest = -lowest > highest ? lowest : highest;  // with its sign: it becomes -8
  float least = INFINITY;
  for (int i = 0; i < num_shares; i++) {
    const float scale = widen(round_to_bf16(largest / -8 * shares[i]));
    __m512 multiples[2];
    const float error = error_of(w, scale, multiples);
    if (error < least) least = error, *best_scale = scale, best[0] = multiples[0], best[1] = multiples[1];
  }
}

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

constexpr int kBlock = 16;  // places of a block of the cache

// One block's keys and values of one head.
struct Bf16Cache {
  const bf16 *keys, *values;

  template <int C>
  void scores(int64_t place, int64_t head, int64_t K, const bf16* q, int G, float* out) const {
    for (int p = 0; p < kBlock; p++) {
      const bf16* key = keys + ((place + p) * K + head) * C;
      for (int g = 0; g < G; g++) {
        __m512 sum = _mm512_setzero_ps();
        for (int c = 0; c < C; c += 32) sum = _mm512_dpbf16_ps(sum, load_bf16(key + c), load_bf16(q + g * C + c));
        out[g * kBlock + p] = _mm512_reduce_add_ps(sum);
      }
    }
  }

  template <int C>
  void widen_values(int64_t place, int64_t head, int64_t K, float* out) const {
    for (int p = 0; p < kBlock; p++) {
      const bf16* value = values + ((place + p) * K + head) * C;
      for (int c = 0; c < C; c += 16) {
        __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(value + c)));
        _mm512_store_ps(out + p * C + c, _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)));
      }
    }
  }
};

// The same in 8 bits, with one scale for each key and each value.
struct Int8Cache {
  const uint8_t *keys, *values;
  const bf16 *key_scales, *value_scales;

  template <int C>
  void scores(int64_t place, int64_t head, int64_t K, const bf16* q, int G, float* out) const {
    const __m512i low = nibble_table(0, 1, false), high = nibble_table(0, 16, true);
    for (int p = 0; p < kBlock; p++) {
      const int64_t at = (place + p) * K + head;
      __m512bh lower[C / 32], upper[C / 32];
      for (int c = 0; c < C; c += 32) {
        __m512i bytes = widen_bytes(keys + at * C + c);
        lower[c / 32] = (__m512bh)_mm512_permutexvar_epi16(bytes, low);
        upper[c / 32] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(bytes, 4), high);
      }
      for (int g = 0; g < G; g++) {
        __m512 sum = _mm512_setzero_ps();
        for (int c = 0; c < C; c += 32) {
          __m512bh query = load_bf16(q + g * C + c);
          sum = _mm512_dpbf16_ps(_mm512_dpbf16_ps(sum, lower[c / 32], query), upper[c / 32], query);
        }
        out[g * kBlock + p] = _mm512_reduce_add_ps(sum) * widen(key_scales[at]);
      }
    }
  }

  template <int C>
  void widen_values(int64_t place, int64_t head, int64_t K, float* out) const {
    for (int p = 0; p < kBlock; p++) {
      const int64_t at = (place + p) * K + head;
      const __m512 scale = _mm512_set1_ps(widen(value_scales[at]));
      for (int c = 0; c < C; c += 16) {
        __m512i whole = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(values + at * C + c)));
        _mm512_store_ps(out + p * C + c, _mm512_mul_ps(_mm512_cvtepi32_ps(whole), scale));
      }
    }
  }
};

// A part of one sequence's attention: for each query head the largest score, the sum of weights, the weighted values.
struct Partial {
  float* largest;  // (H)
  float* total;    // (H)
  float* values;   // (H, C)
};

template <int C, class Cache>
void attend_part(const Cache& cache, const bf16* q, const int64_t* blocks, int64_t begin, int64_t end, int64_t H,
                 int64_t K, float scale, Partial out) {
  const int G = int(H / K);
  std::vector<float> scores(size_t(G) * kBlock);
  alignas(64) float values[kBlock * C];
  for (int64_t h = 0; h < H; h++) out.largest[h] = -INFINITY, out.total[h] = 0;
  std::memset(out.values, 0, sizeof(float) * H * C);
  for (int64_t start = begin; start < end; start += kBlock) {
    const int64_t place = blocks[start / kBlock] * kBlock;
    const int seen = int(std::min<int64_t>(kBlock, end - start));
    const __mmask16 is_seen = __mmask16((1u << seen) - 1);
    for (int64_t head = 0; head < K; head++) {
      cache.template scores<C>(place, head, K, q + head * G * C, G, scores.data());
      cache.template widen_values<C>(place, head, K, values);
      for (int g = 0; g < G; g++) {
        const int64_t h = head * G + g;
        __m512 score = _mm512_mul_ps(_mm512_loadu_ps(scores.data() + g * kBlock), _mm512_set1_ps(scale));
        score = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), is_seen, score);
        const float largest = std::max(out.largest[h], _mm512_reduce_max_ps(score));
        const float shrink = std::exp(out.largest[h] - largest);
        __m512 weight = _mm512_maskz_mov_ps(is_seen, exponential(_mm512_sub_ps(score, _mm512_set1_ps(largest))));
        alignas(64) float weights[kBlock];
        _mm512_store_ps(weights, weight);
        out.largest[h] = largest;
        out.total[h] = out.total[h] * shrink + _mm512_reduce_add_ps(weight);
        float* sum = out.values + h * C;
        __m512 parts[C / 16];
        for (int c = 0; c < C / 16; c++) parts[c] = _mm512_mul_ps(_mm512_loadu_ps(sum + c * 16), _mm512_set1_ps(shrink));
        for (int p = 0; p < seen; p++) {
          const __m512 w = _mm512_set1_ps(weights[p]);
          for (int c = 0; c < C / 16; c++) parts[c] = _mm512_fmadd_ps(w, _mm512_load_ps(values + p * C + c * 16), parts[c]);
        }
        for (int c = 0; c < C / 16; c++) _mm512_storeu_ps(sum + c * 16, parts[c]);
      }
    }
  }
}

template <int C, class Cache>
void attend(const Cache& cache, const bf16* q, const int64_t* blocks, const int64_t* lengths, bf16* out, int64_t N,
            int64_t H, int64_t K, int64_t width, float scale, int num_threads) {
  // Long sequences are cut so that every core has work; where they are cut depends on their own length alone.
  constexpr int64_t kPart = 512;
  std::vector<int64_t> first(N + 1, 0);
  for (int64_t n = 0; n < N; n++) first[n + 1] = first[n] + (lengths[n] + kPart - 1) / kPart;
  const int64_t num_parts = first[N], floats = H * (C + 2);
  std::vector<float> room(size_t(num_parts) * floats);
  auto partial = [&](int64_t part) {
    float* at = room.data() + part * floats;
    return Partial{at, at + H, at + 2 * H};
  };
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, 1)
  for (int64_t part = 0; part < num_parts; part++) {
    const int64_t n = std::upper_bound(first.begin(), first.end(), part) - first.begin() - 1;
    const int64_t begin = (part - first[n]) * kPart;
    attend_part<C>(cache, q + n * H * C, blocks + n * width, begin, std::min(begin + kPart, lengths[n]), H, K, scale,
                   partial(part));
  }
  for (int64_t n = 0; n < N; n++)
    for (int64_t h = 0; h < H; h++) {
      float largest = -INFINITY, total = 0, values[C] = {};
      for (int64_t part = first[n]; part < first[n + 1]; part++) largest = std::max(largest, partial(part).largest[h]);
      for (int64_t part = first[n]; part < first[n + 1]; part++) {
        const Partial one = partial(part);
        const float weight = std::exp(one.largest[h] - largest);
        total += weight * one.total[h];
        for (int c = 0; c < C; c++) values[c] += weight * one.values[h * C + c];
      }
      for (int c = 0; c < C; c++) out[(n * H + h) * C + c] = round_to_bf16(values[c] / total);
    }
}

template <class Cache>
int attend_any(const Cache& cache, const bf16* q, const int64_t* blocks, const int64_t* lengths, bf16* out, int64_t N,
               int64_t H, int64_t K, int64_t C, int64_t width, float scale, int num_threads) {
  switch (C) {
    case 32: attend<32>(cache, q, blocks, lengths, out, N, H, K, width, scale, num_threads); return 0;
    case 64: attend<64>(cache, q, blocks, lengths, out, N, H, K, width, scale, num_threads); return 0;
    case 128: attend<128>(cache, q, blocks, lengths, out, N, H, K, width, scale, num_threads); return 0;
  }
  return 1;
}

}  // namespace

extern "C" {

void linear_bf16(const bf16* x, const bf16* weight, bf16* y, int64_t M, int64_t N, int64_t K, int num_threads) {
  multiply(Bf16Weights{weight}, x, y, M, N, K, num_threads);
}

void linear_int8(const bf16* x, const uint8_t* weight, const bf16* scales, bf16* y, int64_t M, int64_t N, int64_t K,
                 int num_threads) {
  multiply(Int8Weights{weight, scales}, x, y, M, N, K, num_threads);
}

void linear_int4(const bf16* x, const uint8_t* weight, const bf16* scales, bf16* y, int64_t M, int64_t N, int64_t K,
                 int num_threads) {
  multiply(Int4Weights{weight, scales}, x, y, M, N, K, num_threads);
}

void widen_int4(const uint8_t* weight, const bf16* scales, bf16* out, int64_t N, int64_t K, int num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static)
  for (int64_t step = 0; step < N * K / 64; step++)
    widen_int4_step(weight + step * 32, scales + step * 2, out + step * 64);
}

void quantize_int4(const float* weight, const float* shares, int num_shares, uint8_t* out, bf16* scales, int64_t N,
                   int64_t K, int num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static)
  for (int64_t step = 0; step < N * K / 64; step++) {
    alignas(16) uint8_t nibbles[2][kGroup];
    for (int half = 0; half < 2; half++) {
      float scale = 0;
      __m512 best[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
      quantize_group(weight + step * 64 + half * 32, shares, num_shares, &scale, best);
      scales[step * 2 + half] = round_to_bf16(scale);
      for (int i = 0; i < 2; i++) {
        __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(best[i]), _mm512_set1_epi32(8));
        _mm_store_si128((__m128i*)(nibbles[half] + 16 * i), _mm512_cvtepi32_epi8(whole));
      }
    }
    for (int i = 0; i < kGroup; i++) out[step * 32 + i] = uint8_t(nibbles[0][i] | (nibbles[1][i] << 4));
  }
}

int attend_bf16(const bf16* q, const bf16* keys, const bf16* values, const int64_t* blocks, const int64_t* lengths,
                bf16* out, int64_t N, int64_t H, int64_t K, int64_t C, int64_t width, float scale, int num_threads) {
  return attend_any(Bf16Cache{keys, values}, q, blocks, lengths, out, N, H, K, C, width, scale, num_threads);
}

int attend_int8(const bf16* q, const uint8_t* keys, const uint8_t* values, const bf16* key_scales,
                const bf16* value_scales, const int64_t* blocks, const int64_t* lengths, bf16* out, int64_t N,
                int64_t H, int64_t K, int64_t C, int64_t width, float scale, int num_threads) {
  return attend_any(Int8Cache{keys, values, key_scales, value_scales}, q, blocks, lengths, out, N, H, K, C, width,
                    scale, num_threads);
}
}
