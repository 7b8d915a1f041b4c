// What stands between the matmuls of a bfloat16 Llama, each in one pass over memory, for processors with AVX-512 BF16:
// RMSNorm, rotary positions, SwiGLU, and the softmax of the loss. Arithmetic is float32; what is written is rounded once.
//
// The twins are in `herd/ops/rms_norm.py`, `rope.py`, `swiglu.py` and `cross_entropy.py`. Widths are multiples of 16.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#ifndef __AVX512BF16__
#error "this processor has no AVX-512 BF16"
#endif

using bf16 = uint16_t;

static inline __m512 load(const bf16* x) {
    __m256i narrow = _mm256_loadu_si256((const __m256i*)x);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}
static inline void store(bf16* x, __m512 wide) { _mm256_storeu_si256((__m256i*)x, (__m256i)_mm512_cvtneps_pbh(wide)); }
static inline __m512 all(float x) { return _mm512_set1_ps(x); }

static inline __m512 exp16(__m512 x) {  // 2^n * 2^r with |r| <= 1/2; a polynomial of degree 5 is exact to 2e-7
    x = _mm512_max_ps(_mm512_mul_ps(x, all(1.44269504f)), all(-126.f));
    __m512 n = _mm512_roundscale_ps(x, 0), r = _mm512_sub_ps(x, n), p = all(1.3333558e-3f);
    for (float c : {9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.f}) p = _mm512_fmadd_ps(p, r, all(c));
    return _mm512_scalef_ps(p, n);
}

static inline __m512 sigmoid(__m512 x) {  // 1 / (1 + e^-x); the reciprocal is refined to float32
    __m512 below = _mm512_add_ps(all(1.f), exp16(_mm512_min_ps(_mm512_sub_ps(all(0.f), x), all(80.f))));
    __m512 guess = _mm512_rcp14_ps(below);
    return _mm512_mul_ps(guess, _mm512_fnmadd_ps(below, guess, all(2.f)));
}

// x, out (rows, D); scale (rows): one over each row's root mean square
extern "C" void rms_norm_forward(int64_t rows, int64_t D, const bf16* x, const bf16* weight, float eps, bf16* out,
                                 float* scale, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const bf16* from = x + i * D;
        __m512 sum = all(0.f);
        for (int64_t j = 0; j < D; j += 16) sum = _mm512_fmadd_ps(load(from + j), load(from + j), sum);
        const float s = 1.f / std::sqrt(_mm512_reduce_add_ps(sum) / D + eps);
        for (int64_t j = 0; j < D; j += 16)
            store(out + i * D + j, _mm512_mul_ps(_mm512_mul_ps(load(from + j), all(s)), load(weight + j)));
        scale[i] = s;
    }
}

// grad, grad_x (rows, D); grad_weight (D). Each thread sums the weight's gradient over its own rows, then all in order:
// the same for the same number of threads.
extern "C" void rms_norm_backward(int64_t rows, int64_t D, const bf16* x, const bf16* weight, const float* scale,
                                  const bf16* grad, bf16* grad_x, bf16* grad_weight, int threads) {
    std::vector<float> sums((size_t)threads * D, 0.f);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const bf16 *from = x + i * D, *slope = grad + i * D;
        float* sum = sums.data() + omp_get_thread_num() * D;
        const __m512 s = all(scale[i]);
        __m512 along = all(0.f);  // how much of the gradient only lengthens x
        for (int64_t j = 0; j < D; j += 16) {
            __m512 product = _mm512_mul_ps(load(from + j), load(slope + j));
            along = _mm512_fmadd_ps(product, load(weight + j), along);
            _mm512_storeu_ps(sum + j, _mm512_fmadd_ps(product, s, _mm512_loadu_ps(sum + j)));
        }
        const __m512 shrink = all(-_mm512_reduce_add_ps(along) * scale[i] * scale[i] / D);
        for (int64_t j = 0; j < D; j += 16) {
            __m512 turned = _mm512_mul_ps(load(slope + j), load(weight + j));
            store(grad_x + i * D + j, _mm512_mul_ps(_mm512_fmadd_ps(load(from + j), shrink, turned), s));
        }
    }
    for (int64_t j = 0; j < D; j += 16) {
        __m512 sum = _mm512_loadu_ps(&sums[j]);
        for (int t = 1; t < threads; t++) sum = _mm512_add_ps(sum, _mm512_loadu_ps(&sums[t * D + j]));
        store(grad_weight + j, sum);
    }
}

// x, out (tokens, heads, C); cos, sin (tokens, C) as in `apply_rotary`; direction 1 turns, -1 turns back
extern "C" void rotary(int64_t tokens, int64_t heads, int64_t C, const bf16* x, const bf16* cos, const bf16* sin,
                       float direction, bf16* out, int threads) {
    const int64_t half = C / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t j = 0; j < half; j += 16) {
            const __m512 c = load(cos + t * C + j), s = _mm512_mul_ps(load(sin + t * C + half + j), all(direction));
            for (int64_t h = 0; h < heads; h++) {
                const int64_t at = (t * heads + h) * C + j;
                __m512 first = load(x + at), second = load(x + at + half);
                store(out + at, _mm512_fnmadd_ps(second, s, _mm512_mul_ps(first, c)));
                store(out + at + half, _mm512_fmadd_ps(first, s, _mm512_mul_ps(second, c)));
            }
        }
}

// out = silu(gate) * up, all of n elements
extern "C" void swiglu_forward(int64_t n, const bf16* gate, const bf16* up, bf16* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i += 16) {
        __m512 g = load(gate + i);
        store(out + i, _mm512_mul_ps(_mm512_mul_ps(g, sigmoid(g)), load(up + i)));
    }
}

extern "C" void swiglu_backward(int64_t n, const bf16* gate, const bf16* up, const bf16* grad, bf16* grad_gate,
                                bf16* grad_up, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i += 16) {
        __m512 g = load(gate + i), slope = load(grad + i), s = sigmoid(g), silu = _mm512_mul_ps(g, s);
        __m512 steep = _mm512_fmadd_ps(silu, _mm512_sub_ps(all(1.f), s), s);  // of silu: s + g s (1 - s)
        store(grad_gate + i, _mm512_mul_ps(_mm512_mul_ps(slope, load(up + i)), steep));
        store(grad_up + i, _mm512_mul_ps(slope, silu));
    }
}

// sums += x, all of n elements
extern "C" void accumulate(int64_t n, const bf16* x, float* sums, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i += 16) _mm512_storeu_ps(sums + i, _mm512_add_ps(_mm512_loadu_ps(sums + i), load(x + i)));
}

// logits (tokens, V) become their gradient, softmax minus one at the label; losses (tokens) = -log softmax[label].
// Returns how many labels are none, for which nothing is done.
extern "C" int cross_entropy(int64_t tokens, int64_t V, bf16* logits, const int64_t* labels, float* losses,
                             int threads) {
    int strange = 0;
#pragma omp parallel num_threads(threads) reduction(+ : strange)
    {
        std::vector<float> powers(V);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tokens; t++) {
            if (labels[t] < 0 || labels[t] >= V) {
                strange++;
                continue;
            }
            bf16* row = logits + t * V;
            __m512 top = load(row), sum = all(0.f);
            for (int64_t j = 16; j < V; j += 16) top = _mm512_max_ps(top, load(row + j));
            const float most = _mm512_reduce_max_ps(top);
            const uint32_t bits = (uint32_t)row[labels[t]] << 16;
            float chosen;
            std::copy_n((const char*)&bits, 4, (char*)&chosen);
            for (int64_t j = 0; j < V; j += 16) {
                __m512 e = exp16(_mm512_sub_ps(load(row + j), all(most)));
                _mm512_storeu_ps(&powers[j], e);
                sum = _mm512_add_ps(sum, e);
            }
            const float total = _mm512_reduce_add_ps(sum), share = 1.f / total;
            powers[labels[t]] -= total;
            for (int64_t j = 0; j < V; j += 16) store(row + j, _mm512_mul_ps(_mm512_loadu_ps(&powers[j]), all(share)));
            losses[t] = std::log(total) - (chosen - most);
        }
    }
    return strange;
}
