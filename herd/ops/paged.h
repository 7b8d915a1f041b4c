// Attention over the paged cache: sequences whose new tokens lie in consecutive rows, their keys and values in blocks.
//
// A span of one token reads the cache where it lies; a span of many is a product of matrices, tile by tile, with a
// running softmax. H query heads, K key-value heads, C channels a head.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "linear.h"

namespace {

constexpr int kBlock = 16;     // places of a block of the cache
constexpr int kTile = 64;      // queries and keys of a tile
constexpr int64_t kPart = 256; // places of a long sequence that one core takes; where it is cut depends on its length alone

// Consecutive new tokens of one sequence, as they travel over the border.
struct Span {
  int64_t row, count, start;  // their rows; the places before them
  const int64_t* blocks;

  int64_t seen() const { return start + count; }
  int64_t num_parts() const { return (seen() + kPart - 1) / kPart; }
};

struct Heads {
  int64_t H, K, C;
  float scale;
};

// Keys or values of one layer: bfloat16, or 8 bits with a scale for each head's vector.
struct Pool {
  const void* numbers;
  const bf16* scales;  // null: bfloat16

  // Sixteen places of one head side by side; `room` (16, C) is used where they must be widened. Sets their stride.
  const bf16* block(int64_t block, int64_t head, const Heads& h, bf16* room, int64_t* stride) const {
    const int64_t first = block * kBlock * h.K + head;
    if (scales == nullptr) {
      *stride = h.K * h.C;
      return (const bf16*)numbers + first * h.C;
    }
    for (int p = 0; p < kBlock; p++) {
      const int64_t at = first + p * h.K;
      const __m512 scale = _mm512_set1_ps(widen(scales[at]));
      for (int64_t c = 0; c < h.C; c += 16) {
        const __m512i whole = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)((const uint8_t*)numbers + at * h.C + c)));
        narrow16(room + p * h.C + c, _mm512_mul_ps(_mm512_cvtepi32_ps(whole), scale));
      }
    }
    *stride = h.C;
    return room;
  }
};

// One block's keys and values of one head, read where they lie.
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
    for (int p = 0; p < kBlock; p++)
      for (int c = 0; c < C; c += 16) _mm512_store_ps(out + p * C + c, widen16(values + ((place + p) * K + head) * C + c));
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
        const __m512i bytes = widen_bytes(keys + at * C + c);
        lower[c / 32] = (__m512bh)_mm512_permutexvar_epi16(bytes, low);
        upper[c / 32] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(bytes, 4), high);
      }
      for (int g = 0; g < G; g++) {
        __m512 sum = _mm512_setzero_ps();
        for (int c = 0; c < C; c += 32) {
          const __m512bh query = load_bf16(q + g * C + c);
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
        const __m512i whole = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(values + at * C + c)));
        _mm512_store_ps(out + p * C + c, _mm512_mul_ps(_mm512_cvtepi32_ps(whole), scale));
      }
    }
  }
};

// A part of one token's attention: for each query head the largest score, the sum of weights, the weighted values.
struct Partial {
  float* at;
  int64_t H, C;

  static int64_t size(const Heads& h) { return h.H * (h.C + 2); }
  float& largest(int64_t h) const { return at[h]; }
  float& total(int64_t h) const { return at[H + h]; }
  float* values(int64_t h) const { return at + 2 * H + h * C; }
};

template <int C, class Cache>
void attend_part(const Cache& cache, const bf16* q, const int64_t* blocks, int64_t begin, int64_t end, const Heads& heads,
                 const Partial& out) {
  const int64_t H = heads.H, K = heads.K;
  const int G = int(H / K);
  std::vector<float> scores(size_t(G) * kBlock);
  alignas(64) float values[kBlock * C];
  for (int64_t h = 0; h < H; h++) out.largest(h) = -INFINITY, out.total(h) = 0;
  std::memset(out.values(0), 0, sizeof(float) * H * C);
  for (int64_t start = begin; start < end; start += kBlock) {
    const int64_t place = blocks[start / kBlock] * kBlock;
    const int seen = int(std::min<int64_t>(kBlock, end - start));
    const __mmask16 is_seen = __mmask16((1u << seen) - 1);
    for (int64_t head = 0; head < K; head++) {
      cache.template scores<C>(place, head, K, q + head * G * C, G, scores.data());
      cache.template widen_values<C>(place, head, K, values);
      for (int g = 0; g < G; g++) {
        const int64_t h = head * G + g;
        __m512 score = _mm512_mul_ps(_mm512_loadu_ps(scores.data() + g * kBlock), _mm512_set1_ps(heads.scale));
        score = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), is_seen, score);
        const float largest = std::max(out.largest(h), _mm512_reduce_max_ps(score));
        const float shrink = std::exp(out.largest(h) - largest);
        const __m512 weight = _mm512_maskz_mov_ps(is_seen, exponential(_mm512_sub_ps(score, _mm512_set1_ps(largest))));
        alignas(64) float weights[kBlock];
        _mm512_store_ps(weights, weight);
        out.largest(h) = largest;
        out.total(h) = out.total(h) * shrink + _mm512_reduce_add_ps(weight);
        float* sum = out.values(h);
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

template <class Cache>
void attend_part_any(const Cache& cache, const bf16* q, const int64_t* blocks, int64_t begin, int64_t end, const Heads& h,
                     const Partial& out) {
  if (h.C == 32) attend_part<32>(cache, q, blocks, begin, end, h, out);
  if (h.C == 64) attend_part<64>(cache, q, blocks, begin, end, h, out);
  if (h.C == 128) attend_part<128>(cache, q, blocks, begin, end, h, out);
}

// What a thread needs for the prompts: a sequence's keys and values as pairs.
struct Packed {
  std::vector<pair> keys, values;  // tile by tile (C / 2, 64); (places / 2, C)

  void fill(const Span& span, const Pool& key_pool, const Pool& value_pool, int64_t head, const Heads& h) {
    const int64_t places = (span.seen() + kTile - 1) / kTile * kTile, last = (span.seen() - 1) / kBlock;
    keys.resize(places * h.C / 2);
    values.resize(places * h.C / 2);
    bf16 room[kBlock * 256];
    for (int64_t p = 0; p < places; p += kBlock) {
      const int64_t block = span.blocks[std::min(p / kBlock, last)];
      int64_t stride;
      const bf16* rows = key_pool.block(block, head, h, room, &stride);
      for (int64_t c = 0; c < h.C; c += 32)
        pack_pairs(rows + c, stride, keys.data() + p / kTile * kTile * h.C / 2 + c / 2 * kTile + p % kTile, kTile);
      rows = value_pool.block(block, head, h, room, &stride);
      for (int i = 0; i < kBlock; i += 2) {
        // What lies past the end has no weight, but must be a number.
        const __mmask16 first = p + i < span.seen() ? 0xffff : 0, second = p + i + 1 < span.seen() ? 0xffff : 0;
        for (int64_t c = 0; c < h.C; c += 16) {
          const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first, rows + i * stride + c));
          const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second, rows + (i + 1) * stride + c));
          _mm512_storeu_si512(values.data() + (p + i) / 2 * h.C + c, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
      }
    }
  }
};

// 64 queries of one head, the first at place `first`: their running softmax over all tiles of keys that they see.
struct QueryTile {
  alignas(64) float scores[kTile * kTile], sums[kTile * 256];
  alignas(64) bf16 weights[kTile * kTile], queries[kTile * 256];
  float most[kTile], total[kTile];

  void attend(const Packed& packed, int64_t first, int64_t n, const Heads& h) {
    std::fill(most, most + n, -INFINITY), std::fill(total, total + n, 0.f), std::fill(sums, sums + n * h.C, 0.f);
    for (int64_t k = 0; k < first + n; k += kTile) {
      gemm(n, kTile, int(h.C / 2), queries, h.C, packed.keys.data() + k * h.C / 2, kTile, scores, kTile, false);
      for (int64_t i = 0; i < n; i++) soften(i, first + i - k, h);
      gemm(n, int(h.C), kTile / 2, weights, kTile, packed.values.data() + k / 2 * h.C, h.C, sums, h.C, true);
    }
  }

  // Row i's scores become weights; it sees the keys of this tile up to `last`.
  void soften(int64_t i, int64_t last, const Heads& h) {
    __m512 x[4], top = _mm512_set1_ps(most[i]), sum = _mm512_setzero_ps();
    for (int j = 0; j < 4; j++) {
      const int64_t sees = last - 16 * j + 1;
      const __mmask16 mask = sees >= 16 ? 0xffff : sees <= 0 ? 0 : __mmask16((1u << sees) - 1);
      x[j] = _mm512_mul_ps(_mm512_load_ps(scores + i * kTile + 16 * j), _mm512_set1_ps(h.scale));
      x[j] = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), mask, x[j]);
      top = _mm512_max_ps(top, x[j]);
    }
    const float now = _mm512_reduce_max_ps(top), shrink = std::exp(most[i] - now);
    for (int j = 0; j < 4; j++) {
      const __mmask16 mask = _mm512_cmp_ps_mask(x[j], _mm512_set1_ps(-INFINITY), _CMP_NEQ_OQ);
      const __m512 e = _mm512_maskz_mov_ps(mask, exponential(_mm512_sub_ps(x[j], _mm512_set1_ps(now))));
      sum = _mm512_add_ps(sum, e);
      narrow16(weights + i * kTile + 16 * j, e);
    }
    total[i] = total[i] * shrink + _mm512_reduce_add_ps(sum);
    most[i] = now;
    if (shrink == 1.f) return;
    for (int64_t c = 0; c < h.C; c += 16)
      _mm512_store_ps(sums + i * h.C + c, _mm512_mul_ps(_mm512_load_ps(sums + i * h.C + c), _mm512_set1_ps(shrink)));
  }
};

// The attention of a step's spans: first the parts, then, when all are done, what is put together of them.
struct Attention {
  const Span* spans;
  int64_t num_spans;
  Heads heads;
  Pool keys, values;
  const bf16* q;       // (M, H, C)
  Tokens out;          // (M, H x C), in the next product's layout
  std::vector<int64_t> first;  // of each span: its first unit
  std::vector<float> room;     // partial results of the single tokens

  Attention(const Span* spans, int64_t num_spans, const Heads& heads, int threads) : spans(spans), num_spans(num_spans), heads(heads) {
    splits = std::max<int64_t>(1, 2 * threads / heads.K);
    first.push_back(0);
    for (int64_t n = 0; n < num_spans; n++)
      first.push_back(first[n] + (spans[n].count == 1 ? spans[n].num_parts() : heads.K * splits));
    room.resize(first[num_spans] * Partial::size(heads));
  }

  int64_t num_units() const { return first[num_spans]; }

  void unit(int64_t number, Packed& packed) {
    const int64_t n = std::upper_bound(first.begin(), first.end(), number) - first.begin() - 1;
    const Span& span = spans[n];
    if (span.count > 1) return prompt(span, (number - first[n]) / splits, (number - first[n]) % splits, packed);
    const int64_t begin = (number - first[n]) * kPart, end = std::min(begin + kPart, span.seen());
    const bf16* query = q + span.row * heads.H * heads.C;
    if (keys.scales == nullptr)
      attend_part_any(Bf16Cache{(const bf16*)keys.numbers, (const bf16*)values.numbers}, query, span.blocks, begin, end,
                      heads, partial(number));
    else
      attend_part_any(Int8Cache{(const uint8_t*)keys.numbers, (const uint8_t*)values.numbers, keys.scales, values.scales},
                      query, span.blocks, begin, end, heads, partial(number));
  }

  // The parts of span n, if it is a single token, become its result.
  void combine(int64_t n) {
    if (spans[n].count > 1) return;
    for (int64_t h = 0; h < heads.H; h++) {
      float largest = -INFINITY, total = 0;
      alignas(64) float sum[128] = {};
      for (int64_t part = first[n]; part < first[n + 1]; part++) largest = std::max(largest, partial(part).largest(h));
      for (int64_t part = first[n]; part < first[n + 1]; part++) {
        const Partial one = partial(part);
        const float weight = std::exp(one.largest(h) - largest);
        total += weight * one.total(h);
        for (int64_t c = 0; c < heads.C; c++) sum[c] += weight * one.values(h)[c];
      }
      put(spans[n].row, h, sum, 1 / total);
    }
  }

 private:
  int64_t splits;

  Partial partial(int64_t number) { return {room.data() + number * Partial::size(heads), heads.H, heads.C}; }

  void prompt(const Span& span, int64_t head, int64_t split, Packed& packed) {
    packed.fill(span, keys, values, head, heads);
    thread_local QueryTile tile;
    const int64_t G = heads.H / heads.K, C = heads.C;
    for (int64_t from = split * kTile; from < span.count; from += splits * kTile)
      for (int64_t g = 0; g < G; g++) {
        const int64_t h = head * G + g, n = std::min<int64_t>(kTile, span.count - from);
        for (int64_t i = 0; i < n; i++)
          std::memcpy(tile.queries + i * C, q + ((span.row + from + i) * heads.H + h) * C, sizeof(bf16) * C);
        tile.attend(packed, span.start + from, n, heads);
        for (int64_t i = 0; i < n; i++) put(span.row + from + i, h, tile.sums + i * C, 1 / tile.total[i]);
      }
  }

  void put(int64_t row, int64_t h, const float* sum, float share) const {
    for (int64_t c = 0; c < heads.C; c += 16)
      narrow16(const_cast<bf16*>(out.at(row, h * heads.C + c)), _mm512_mul_ps(_mm512_load_ps(sum + c), _mm512_set1_ps(share)));
  }
};

}  // namespace
