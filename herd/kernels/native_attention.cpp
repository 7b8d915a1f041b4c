// Document-masked causal attention in bfloat16, forward and backward, for processors with AVX-512 BF16.
//
// The twin of `herd.ops.attention.reference_attention`. Scores never leave the first-level cache: a tile of queries goes
// against tiles of keys, with a running softmax forwards and the scores computed again backwards. Every product of
// matrices is one function, `gemm` of matrix.h.
//
// Letters: B rows, T tokens, H query heads, K key-value heads, C channels of a head (a multiple of 16).

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "matrix.h"

#ifndef __AVX512BF16__
#error "this processor has no AVX-512 BF16"
#endif

static const int TILE = 64;  // queries and keys of a tile
static const float NEVER = -std::numeric_limits<float>::infinity();

static inline __m512 widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
static inline __m256i narrow(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

static inline __m512 exp16(__m512 x) {  // 2^n * 2^r with |r| <= 1/2; a polynomial of degree 5 is exact to 2e-7
    x = _mm512_max_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _mm512_set1_ps(-126.f));
    __m512 n = _mm512_roundscale_ps(x, 0), r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.3333558e-3f);
    for (float c : {9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.f})
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    return _mm512_scalef_ps(p, n);
}

// x (rows, n), row-major with the given stride, to pairs of neighbouring rows; an odd last row meets zeros
static void pack_rows(int rows, int n, const bf16* x, int64_t stride, pair* out, int ldo) {
    for (int i = 0; i < rows; i += 2) {
        const bf16 *first = x + i * stride, *second = first + stride;
        bool alone = i + 1 == rows;
        for (int j = 0; j < n; j++) out[(int64_t)(i / 2) * ldo + j] = first[j] | (pair)(alone ? 0 : second[j]) << 16;
    }
}

// x (n, channels) to pairs of neighbouring channels, transposed: out[c / 2][i]
static void pack_transposed(int n, int channels, const bf16* x, int64_t stride, pair* out, int ldo) {
    for (int i = 0; i < n; i++)
        for (int c = 0; c < channels / 2; c++) std::memcpy(&out[(int64_t)c * ldo + i], x + i * stride + 2 * c, 4);
}

// Rows that lie far apart, side by side: at strides of a power of two they would push each other out of the cache.
static void gather(int rows, int C, const bf16* x, int64_t stride, bf16* out) {
    for (int i = 0; i < rows; i++) std::memcpy(out + (int64_t)i * C, x + i * stride, 2 * C);
}

struct Shape {
    int64_t B, T, H, K, C;
};

// One key-value head of one row: where its queries, keys and values lie.
struct Head {
    const bf16 *q, *k, *v;  // of token 0 and the first query head of the group
    const int32_t* start;   // (T): the first key a query sees; T where it is padding
    int64_t q_stride, k_stride;
    int T, C, group;
};

static Head head_of(const Shape& s, const bf16* q, const bf16* k, const bf16* v, const int32_t* start, int64_t unit) {
    int64_t row = unit / s.K, head = unit % s.K, group = s.H / s.K;
    int64_t keys = (row * s.T * s.K + head) * s.C;
    return {q + (row * s.T * s.H + head * group) * s.C, k + keys, v + keys, start + row * s.T,
            s.H * s.C, s.K * s.C, (int)s.T, (int)s.C, (int)group};
}

// Of the queries q0 to q0 + n: the least and the greatest first key; padding sees nothing.
static void reach(const Head& h, int q0, int n, int& least, int& greatest) {
    least = h.T, greatest = 0;
    for (int i = q0; i < q0 + n; i++) {
        least = std::min(least, h.start[i]);
        greatest = std::max(greatest, h.start[i]);
    }
}

// Keys lie tile by tile, so that one tile is one stretch of memory, whatever the number of tokens.
static void pack_keys(const Head& h, pair* out) {
    for (int k0 = 0; k0 < h.T; k0 += TILE)
        pack_transposed(std::min(TILE, h.T - k0), h.C, h.k + k0 * h.k_stride, h.k_stride, out + k0 * h.C / 2, TILE);
}

static void transpose_keys(const Head& h, bf16* out) {
    for (int t = 0; t < h.T; t++)
        for (int c = 0; c < h.C; c++) out[((int64_t)(t / TILE) * h.C + c) * TILE + t % TILE] = h.k[t * h.k_stride + c];
}

static void forward_tile(const Head& h, int g, int q0, const pair* keys, const pair* values, bf16* out, float* lse) {
    alignas(64) float scores[TILE * TILE], sums[TILE * 256];
    alignas(64) bf16 weights[TILE * TILE], queries[TILE * 256];
    float most[TILE], total[TILE];
    const int n = std::min(TILE, h.T - q0), C = h.C;
    const float scale = 1.f / std::sqrt((float)C);
    int least, greatest;
    reach(h, q0, n, least, greatest);
    std::fill(most, most + n, NEVER), std::fill(total, total + n, 0.f), std::fill(sums, sums + n * C, 0.f);
    gather(n, C, h.q + q0 * h.q_stride + g * C, h.q_stride, queries);
    for (int k0 = least / TILE * TILE; k0 < q0 + n; k0 += TILE) {
        gemm(n, TILE, C / 2, queries, C, keys + k0 * C / 2, TILE, scores, TILE, false);
        const bool masked = k0 + TILE > q0 + 1 || greatest > k0;
        for (int i = 0; i < n; i++) {
            float* row = scores + i * TILE;
            const int first = h.start[q0 + i] - k0, last = q0 + i - k0;  // the keys of this tile that it sees
            __m512 x[4], top = _mm512_set1_ps(most[i]);
            const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
            for (int j = 0; j < 4; j++) {
                x[j] = _mm512_mul_ps(_mm512_load_ps(row + 16 * j), _mm512_set1_ps(scale));
                if (masked) {
                    __m512i place = _mm512_add_epi32(lane, _mm512_set1_epi32(16 * j));
                    __mmask16 sees = _mm512_cmp_epi32_mask(place, _mm512_set1_epi32(first), _MM_CMPINT_NLT) &
                                     _mm512_cmp_epi32_mask(place, _mm512_set1_epi32(last), _MM_CMPINT_LE);
                    x[j] = _mm512_mask_blend_ps(sees, _mm512_set1_ps(NEVER), x[j]);
                }
                top = _mm512_max_ps(top, x[j]);
            }
            const float now = _mm512_reduce_max_ps(top), base = now == NEVER ? 0.f : now;
            const float shrink = most[i] == NEVER ? 0.f : std::exp(most[i] - base);
            __m512 sum = _mm512_setzero_ps();
            for (int j = 0; j < 4; j++) {
                __m512 e = exp16(_mm512_sub_ps(x[j], _mm512_set1_ps(base)));
                if (masked) e = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x[j], _mm512_set1_ps(NEVER), _CMP_NEQ_OQ), e);
                sum = _mm512_add_ps(sum, e);
                _mm256_store_si256((__m256i*)(weights + i * TILE + 16 * j), narrow(e));
            }
            total[i] = total[i] * shrink + _mm512_reduce_add_ps(sum);
            most[i] = now;
            if (shrink != 1.f)
                for (int c = 0; c < C; c++) sums[i * C + c] *= shrink;
        }
        gemm(n, C, TILE / 2, weights, TILE, values + (int64_t)(k0 / 2) * C, C, sums, C, true);
    }
    for (int i = 0; i < n; i++) {
        const float share = total[i] > 0 ? 1.f / total[i] : 0.f;
        bf16* place = out + (q0 + i) * h.q_stride + g * C;
        for (int c = 0; c < C; c += 16)
            _mm256_storeu_si256((__m256i*)(place + c), narrow(_mm512_mul_ps(_mm512_loadu_ps(sums + i * C + c), _mm512_set1_ps(share))));
        lse[(q0 + i)] = total[i] > 0 ? most[i] + std::log(total[i]) : 0.f;
    }
}

// q, out (B, T, H, C); k, v (B, T, K, C); start (B, T); lse (B, H, T), the logarithm of each query's sum of exponentials
extern "C" void attention_forward(int64_t B, int64_t T, int64_t H, int64_t K, int64_t C, const bf16* q, const bf16* k,
                                  const bf16* v, const int32_t* start, bf16* out, float* lse, int threads) {
    const Shape s{B, T, H, K, C};
    const int wide = (T + TILE - 1) / TILE * TILE;
#pragma omp parallel num_threads(threads)
    {
        std::vector<pair> keys((size_t)C / 2 * wide), values((size_t)wide / 2 * C);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < B * K; unit++) {
            const Head h = head_of(s, q, k, v, start, unit);
            pack_keys(h, keys.data());
            pack_rows(h.T, h.C, h.v, h.k_stride, values.data(), h.C);
            const int64_t first = h.q - q;
            for (int g = 0; g < h.group; g++) {
                float* sums = lse + (unit / K * H + unit % K * h.group + g) * T;
                for (int q0 = 0; q0 < h.T; q0 += TILE)
                    forward_tile(h, g, q0, keys.data(), values.data(), out + first, sums);
            }
        }
    }
}

struct Scratch {  // of one thread
    std::vector<bf16> keys, values;      // (T, C)
    std::vector<bf16> keys_t;            // (wide / TILE, C, TILE)
    std::vector<pair> q_t, grad_t;       // (C / 2, TILE)
    std::vector<pair> q_rows, grad_rows; // (TILE / 2, C)
    std::vector<float> grad_k, grad_v;   // (wide, C)
    std::vector<float> grad_q;           // (C, TILE)
    Scratch(int C, int wide)
        : keys((size_t)C * wide), values((size_t)C * wide), keys_t((size_t)C * wide), q_t(C / 2 * TILE), grad_t(C / 2 * TILE), q_rows(TILE / 2 * C),
          grad_rows(TILE / 2 * C), grad_k((size_t)wide * C), grad_v((size_t)wide * C), grad_q((size_t)C * TILE) {}
};

static void backward_tile(const Head& h, int g, int q0, const bf16* out, const bf16* grad, const float* lse, Scratch& s,
                          bf16* grad_q) {
    alignas(64) float scores[TILE * TILE], products[TILE * TILE], shift[TILE], along[TILE];
    alignas(64) bf16 weights[TILE * TILE], slopes[TILE * TILE];
    alignas(64) pair slope_rows[TILE / 2 * TILE];
    const int n = std::min(TILE, h.T - q0), C = h.C;
    const float scale = 1.f / std::sqrt((float)C);
    int least, greatest;
    reach(h, q0, n, least, greatest);
    const bf16 *queries = h.q + q0 * h.q_stride + g * C, *grads = grad + q0 * h.q_stride + g * C;
    for (auto* x : {&s.q_t, &s.grad_t, &s.q_rows, &s.grad_rows})
        if (n < TILE) std::fill(x->begin(), x->end(), 0);
    pack_transposed(n, C, queries, h.q_stride, s.q_t.data(), TILE);
    pack_transposed(n, C, grads, h.q_stride, s.grad_t.data(), TILE);
    pack_rows(n, C, queries, h.q_stride, s.q_rows.data(), C);
    pack_rows(n, C, grads, h.q_stride, s.grad_rows.data(), C);
    for (int i = 0; i < TILE; i++) {
        __m512 sum = _mm512_setzero_ps();
        if (i < n)
            for (int c = 0; c < C; c += 16) {
                const int64_t place = (q0 + i) * h.q_stride + g * C + c;
                sum = _mm512_fmadd_ps(widen(_mm256_loadu_si256((const __m256i*)(out + place))),
                                      widen(_mm256_loadu_si256((const __m256i*)(grad + place))), sum);
            }
        along[i] = _mm512_reduce_add_ps(sum);
        shift[i] = i < n ? lse[q0 + i] : 0.f;
    }
    std::fill(s.grad_q.begin(), s.grad_q.end(), 0.f);
    alignas(64) int32_t starts[TILE];
    for (int i = 0; i < TILE; i++) starts[i] = i < n ? h.start[q0 + i] : h.T;
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int k0 = least / TILE * TILE; k0 < q0 + n; k0 += TILE) {
        const int m = std::min(TILE, h.T - k0);
        gemm(m, TILE, C / 2, s.keys.data() + (int64_t)k0 * C, C, s.q_t.data(), TILE, scores, TILE, false);
        gemm(m, TILE, C / 2, s.values.data() + (int64_t)k0 * C, C, s.grad_t.data(), TILE, products, TILE, false);
        const bool masked = k0 + TILE > q0 + 1 || greatest > k0 || n < TILE;
        for (int i = 0; i < m; i++)
            for (int j = 0; j < TILE; j += 16) {
                const int at = i * TILE + j;
                __m512 x = _mm512_fmsub_ps(_mm512_load_ps(scores + at), _mm512_set1_ps(scale), _mm512_load_ps(shift + j));
                __m512 p = exp16(x);
                if (masked) {
                    __m512i key = _mm512_set1_epi32(k0 + i), query = _mm512_add_epi32(lane, _mm512_set1_epi32(q0 + j));
                    p = _mm512_maskz_mov_ps(_mm512_cmp_epi32_mask(key, _mm512_load_si512(starts + j), _MM_CMPINT_NLT) &
                                                _mm512_cmp_epi32_mask(key, query, _MM_CMPINT_LE), p);
                }
                __m512 d = _mm512_sub_ps(_mm512_load_ps(products + at), _mm512_load_ps(along + j));
                d = _mm512_mul_ps(_mm512_mul_ps(d, p), _mm512_set1_ps(scale));
                _mm256_store_si256((__m256i*)(weights + at), narrow(p));
                _mm256_store_si256((__m256i*)(slopes + at), narrow(d));
            }
        gemm(m, C, TILE / 2, weights, TILE, s.grad_rows.data(), C, s.grad_v.data() + (int64_t)k0 * C, C, true);
        gemm(m, C, TILE / 2, slopes, TILE, s.q_rows.data(), C, s.grad_k.data() + (int64_t)k0 * C, C, true);
        if (m < TILE) std::fill(slope_rows, slope_rows + TILE / 2 * TILE, 0);
        pack_rows(m, TILE, slopes, TILE, slope_rows, TILE);
        gemm(C, TILE, TILE / 2, s.keys_t.data() + (int64_t)k0 * C, TILE, slope_rows, TILE, s.grad_q.data(), TILE, true);
    }
    for (int i = 0; i < n; i++) {
        alignas(64) float line[256];
        for (int c = 0; c < C; c++) line[c] = s.grad_q[(size_t)c * TILE + i];
        for (int c = 0; c < C; c += 16)
            _mm256_storeu_si256((__m256i*)(grad_q + (q0 + i) * h.q_stride + g * C + c), narrow(_mm512_load_ps(line + c)));
    }
}

static void store(const std::vector<float>& x, int T, int C, int64_t stride, bf16* out) {
    for (int t = 0; t < T; t++)
        for (int c = 0; c < C; c += 16)
            _mm256_storeu_si256((__m256i*)(out + t * stride + c), narrow(_mm512_loadu_ps(&x[(size_t)t * C + c])));
}

// shapes as in attention_forward; grad, out and grad_q (B, T, H, C), grad_k and grad_v (B, T, K, C)
extern "C" void attention_backward(int64_t B, int64_t T, int64_t H, int64_t K, int64_t C, const bf16* q, const bf16* k,
                                   const bf16* v, const int32_t* start, const bf16* out, const float* lse,
                                   const bf16* grad, bf16* grad_q, bf16* grad_k, bf16* grad_v, int threads) {
    const Shape s{B, T, H, K, C};
    const int wide = (T + TILE - 1) / TILE * TILE;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(C, wide);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < B * K; unit++) {
            const Head h = head_of(s, q, k, v, start, unit);
            gather(h.T, h.C, h.k, h.k_stride, scratch.keys.data());
            gather(h.T, h.C, h.v, h.k_stride, scratch.values.data());
            transpose_keys(h, scratch.keys_t.data());
            std::fill(scratch.grad_k.begin(), scratch.grad_k.end(), 0.f);
            std::fill(scratch.grad_v.begin(), scratch.grad_v.end(), 0.f);
            const int64_t queries = h.q - q, keys = h.k - k;
            for (int g = 0; g < h.group; g++) {
                const float* sums = lse + (unit / K * H + unit % K * h.group + g) * T;
                for (int q0 = 0; q0 < h.T; q0 += TILE)
                    backward_tile(h, g, q0, out + queries, grad + queries, sums, scratch, grad_q + queries);
            }
            store(scratch.grad_k, h.T, h.C, h.k_stride, grad_k + keys);
            store(scratch.grad_v, h.T, h.C, h.k_stride, grad_v + keys);
        }
    }
}
