// Products of matrices in bfloat16, summed in float32: A is row-major, B comes packed in pairs of neighbouring rows.
#pragma once

#include "numbers.h"

template <int ROWS, int VECTORS>
inline void gemm_block(int depth, const bf16* a, int64_t lda, const pair* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  __m512 sum[ROWS][VECTORS];
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < VECTORS; j++) sum[i][j] = add ? _mm512_loadu_ps(c + i * ldc + 16 * j) : _mm512_setzero_ps();
  for (int k = 0; k < depth; k++) {
    __m512bh right[VECTORS];
    for (int j = 0; j < VECTORS; j++) right[j] = load_bf16(b + k * ldb + 16 * j);
    for (int i = 0; i < ROWS; i++) {
      pair both;
      std::memcpy(&both, a + i * lda + 2 * k, 4);
      const __m512bh left = (__m512bh)_mm512_set1_epi32(both);
      for (int j = 0; j < VECTORS; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left, right[j]);
    }
  }
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < VECTORS; j++) _mm512_storeu_ps(c + i * ldc + 16 * j, sum[i][j]);
}

template <int VECTORS>
inline void gemm_columns(int64_t m, int depth, const bf16* a, int64_t lda, const pair* b, int64_t ldb, float* c, int64_t ldc,
                         bool add) {
  constexpr int ROWS = kFewRegisters ? 4 : VECTORS == 4 ? 6 : 8;
  int64_t i = 0;
  for (; i + ROWS <= m; i += ROWS) gemm_block<ROWS, VECTORS>(depth, a + i * lda, lda, b, ldb, c + i * ldc, ldc, add);
  for (; i + 4 <= m; i += 4) gemm_block<4, VECTORS>(depth, a + i * lda, lda, b, ldb, c + i * ldc, ldc, add);
  for (; i < m; i++) gemm_block<1, VECTORS>(depth, a + i * lda, lda, b, ldb, c + i * ldc, ldc, add);
}

// c (m, n) = [c +] a (m, 2 depth) @ b, where b[k][j] holds rows 2k and 2k + 1 of column j; n is a multiple of 16.
inline void gemm(int64_t m, int n, int depth, const bf16* a, int64_t lda, const pair* b, int64_t ldb, float* c, int64_t ldc,
                 bool add) {
  int j = 0;
  for (; !kFewRegisters && j + 64 <= n; j += 64) gemm_columns<4>(m, depth, a, lda, b + j, ldb, c + j, ldc, add);
  for (; !kFewRegisters && j + 32 <= n; j += 32) gemm_columns<2>(m, depth, a, lda, b + j, ldb, c + j, ldc, add);
  for (; j < n; j += 16) gemm_columns<1>(m, depth, a, lda, b + j, ldb, c + j, ldc, add);
}

// Sixteen vectors of sixteen pairs, transposed in registers.
inline void transpose16(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {  // quarters of r[i], r[i + 4], r[i + 8], r[i + 12] belong to rows i, i + 4, i + 8, i + 12
    const __m512i a = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x44), b = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x44);
    const __m512i c = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xee), d = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xee);
    t[i] = _mm512_shuffle_i32x4(a, b, 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(a, b, 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(c, d, 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(c, d, 0xdd);
  }
  for (int i = 0; i < 16; i++) r[i] = t[i];
}

// 16 rows of 32 numbers (stride in numbers) to pairs: out[c][i] holds numbers 2c and 2c + 1 of row i.
inline void pack_pairs(const bf16* rows, int64_t stride, pair* out, int64_t ldo) {
  __m512i r[16];
  for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(rows + i * stride);
  transpose16(r);
  for (int c = 0; c < 16; c++) _mm512_storeu_si512(out + c * ldo, r[c]);
}
