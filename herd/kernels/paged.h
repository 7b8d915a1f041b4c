// Attention over the paged cache: sequences whose new tokens lie in consecutive rows, their keys and values in blocks.
//
// A span of one token reads the cache where it lies; a span of many is a product of matrices, tile by tile, with a
// running softmax. H query heads, K key-value heads, C channels a head.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
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

// A layer's cache, read where it lies, 32 channels of one head's key or value at a time, as bfloat16.
struct Bf16Cache {
  static constexpr int kBytes = 2;
  const bf16 *keys, *values;

  __m512i key(int64_t at, int64_t C, int64_t c) const { return _mm512_loadu_si512(keys + at * C + c); }
  __m512i value(int64_t at, int64_t C, int64_t c) const { return _mm512_loadu_si512(values + at * C + c); }
  __m512 key_scale(int64_t, int64_t) const { return _mm512_set1_ps(1); }
  __m512 value_scale(int64_t, int64_t) const { return _mm512_set1_ps(1); }
};

// The same in 8 bits, with one scale for each key and each value; the integers are bfloat16 numbers.
struct Int8Cache {
  static constexpr int kBytes = 1;
  const int8_t *keys, *values;
  const bf16 *key_scales, *value_scales;

  static __m512i widen(const int8_t* at) {
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)at)));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(at + 16))));
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
  }
  __m512i key(int64_t at, int64_t C, int64_t c) const { return widen(keys + at * C + c); }
  __m512i value(int64_t at, int64_t C, int64_t c) const { return widen(values + at * C + c); }
  static __m512 scales_of(const bf16* scales, int64_t at, int64_t K) {
    alignas(64) float found[kBlock];
    for (int p = 0; p < kBlock; p++) found[p] = ::widen(scales[at + p * K]);
    return _mm512_load_ps(found);
  }
  __m512 key_scale(int64_t at, int64_t K) const { return scales_of(key_scales, at, K); }
  __m512 value_scale(int64_t at, int64_t K) const { return scales_of(value_scales, at, K); }
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

// What comes next in the cache, fetched while the present is worked on. Each line is asked for twice, a block ahead and
// two, since a processor drops what it is asked for while too much is under way.
struct Coming {
  const char *next, *after;

  void fetch(int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch(next + i, _MM_HINT_T1), _mm_prefetch(after + i, _MM_HINT_T1);
    next += bytes, after += bytes;
  }
};

// Scores of a block's 16 places by N queries of one head, which lie side by side: out[n][place], kPart apart.
template <int C, int N, class Cache>
void score_block(const Cache& cache, int64_t first, int64_t K, const bf16* q, float* out, Coming coming) {
  __m512 sum[N];
  for (int n = 0; n < N; n++) sum[n] = _mm512_setzero_ps();
  for (int c = 0; c < C; c += 32) {
    __m512i keys[kBlock];
    for (int p = 0; p < kBlock; p++) keys[p] = cache.key(first + p * K, C, c);
    transpose16(keys);
    for (int j = 0; j < 16; j++) {
      coming.fetch(Cache::kBytes * 32);
      for (int n = 0; n < N; n++) {
        pair two;
        std::memcpy(&two, q + n * C + c + 2 * j, 4);
        sum[n] = _mm512_dpbf16_ps(sum[n], (__m512bh)keys[j], (__m512bh)_mm512_set1_epi32(two));
      }
    }
  }
  const __m512 scale = cache.key_scale(first, K);
  for (int n = 0; n < N; n++) _mm512_storeu_ps(out + n * kPart, _mm512_mul_ps(sum[n], scale));
}

// Adds a block's values, weighted (weights[n][place], kPart apart), to the sums (N, C). Two places meet in one
// instruction, which leaves 32 channels in the order of `in_order`. Past `seen`, the cache may hold anything.
template <int C, int N, class Cache>
void weigh_block(const Cache& cache, int64_t first, int64_t K, int seen, const bf16* weights, float* sums,
                 Coming coming) {
  for (int c = 0; c < C; c += 32) {
    __m512 sum[N][2];
    for (int n = 0; n < N; n++)
      for (int i = 0; i < 2; i++) sum[n][i] = _mm512_loadu_ps(sums + n * C + c + 16 * i);
    for (int p = 0; p < seen; p += 2) {
      coming.fetch(Cache::kBytes * 64);
      const __m512i one = cache.value(first + p * K, C, c);
      const __m512i two = p + 1 < seen ? cache.value(first + (p + 1) * K, C, c) : _mm512_setzero_si512();
      const __m512bh both[2] = {(__m512bh)_mm512_unpacklo_epi16(one, two), (__m512bh)_mm512_unpackhi_epi16(one, two)};
      for (int n = 0; n < N; n++) {
        pair weight;
        std::memcpy(&weight, weights + n * kPart + p, 4);
        for (int i = 0; i < 2; i++) sum[n][i] = _mm512_dpbf16_ps(sum[n][i], (__m512bh)_mm512_set1_epi32(weight), both[i]);
      }
    }
    for (int n = 0; n < N; n++)
      for (int i = 0; i < 2; i++) _mm512_storeu_ps(sums + n * C + c + 16 * i, sum[n][i]);
  }
}

// 32 sums of `weigh_block` by channel.
inline void in_order(float* sums) {
  const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  const __m512 one = _mm512_loadu_ps(sums), two = _mm512_loadu_ps(sums + 16);
  _mm512_storeu_ps(sums, _mm512_permutex2var_ps(one, low, two));
  _mm512_storeu_ps(sums + 16, _mm512_permutex2var_ps(one, high, two));
}

// Work on G query heads, at most eight at a time: `work(number of heads as a constant, first head)`.
template <class Work>
void by_heads(int G, Work work) {
  int g = 0;
  for (; g + 8 <= G; g += 8) work(std::integral_constant<int, 8>{}, g);
  for (; g + 4 <= G; g += 4) work(std::integral_constant<int, 4>{}, g);
  for (; g + 2 <= G; g += 2) work(std::integral_constant<int, 2>{}, g);
  if (g < G) work(std::integral_constant<int, 1>{}, g);
}

// `count` scores become weights, in place of which their sum and the largest score are told.
inline void soften_part(float* scores, int64_t count, float scale, float* largest, float* total) {
  auto mask_of = [&](int64_t p) { return count - p >= 16 ? __mmask16(0xffff) : __mmask16((1u << (count - p)) - 1); };
  __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
  for (int64_t p = 0; p < count; p += 16)
    most = _mm512_mask_max_ps(most, mask_of(p), most, _mm512_mul_ps(_mm512_loadu_ps(scores + p), _mm512_set1_ps(scale)));
  *largest = _mm512_reduce_max_ps(most);
  for (int64_t p = 0; p < count; p += 16) {
    const __m512 score = _mm512_mul_ps(_mm512_loadu_ps(scores + p), _mm512_set1_ps(scale));
    const __m512 weight = _mm512_maskz_mov_ps(mask_of(p), exponential(_mm512_sub_ps(score, _mm512_set1_ps(*largest))));
    sum = _mm512_add_ps(sum, weight);
    _mm512_storeu_ps(scores + p, weight);
  }
  *total = _mm512_reduce_add_ps(sum);
}

// One token's attention over places from `begin` to `end`, at most kPart: all scores, then weights, then values, each
// block of the cache read once, front to back.
template <int C, class Cache>
void attend_part(const Cache& cache, const bf16* q, const int64_t* blocks, int64_t num_all, int64_t begin, int64_t end,
                 const Heads& heads, const Partial& out) {
  const int64_t H = heads.H, K = heads.K, num_blocks = (end - begin + kBlock - 1) / kBlock;
  const int G = int(H / K);
  thread_local std::vector<float> scores;
  thread_local std::vector<bf16> weights;
  scores.resize(H * kPart), weights.resize(H * kPart);
  const int64_t last = num_all - 1 - begin / kBlock;  // block of the sequence, counted from this part's first
  blocks += begin / kBlock;
  auto each_block = [&](const void* pool, const void* pool_after, int64_t next_after, auto work) {
    auto slice_of = [&](int64_t b, int64_t head) {  // what is read as b-th block from here: others follow the last one
      const int64_t which = b < num_blocks ? b : std::min(b - num_blocks + next_after, last);
      return (const char*)(b < num_blocks ? pool : pool_after) + (blocks[which] * K + head) * kBlock * C * Cache::kBytes;
    };
    for (int64_t b = 0; b < num_blocks; b++)
      for (int64_t head = 0; head < K; head++)
        work(b, blocks[b] * kBlock * K + head, head, Coming{slice_of(b + 1, head), slice_of(b + 2, head)});
  };
  each_block(cache.keys, cache.values, 0, [&](int64_t b, int64_t first, int64_t head, Coming coming) {
    by_heads(G, [&](auto n, int g) {
      score_block<C, n>(cache, first, K, q + (head * G + g) * C, &scores[(head * G + g) * kPart + b * kBlock], coming);
    });
  });
  for (int64_t h = 0; h < H; h++) soften_part(&scores[h * kPart], end - begin, heads.scale, &out.largest(h), &out.total(h));
  std::memset(out.values(0), 0, sizeof(float) * H * C);
  each_block(cache.values, cache.keys, num_blocks, [&](int64_t b, int64_t first, int64_t head, Coming coming) {
    const int seen = int(std::min<int64_t>(kBlock, end - begin - b * kBlock));
    const __m512 scale = cache.value_scale(first, K);
    for (int64_t h = head * G; h < (head + 1) * G; h++) {
      const int64_t at = h * kPart + b * kBlock;
      narrow16(&weights[at], _mm512_mul_ps(_mm512_loadu_ps(&scores[at]), scale));
    }
    by_heads(G, [&](auto n, int g) {
      const int64_t h = head * G + g;
      weigh_block<C, n>(cache, first, K, seen, &weights[h * kPart + b * kBlock], out.values(h), coming);
    });
  });
  for (int64_t i = 0; i < H * C; i += 32) in_order(out.values(0) + i);
}

template <class Cache>
void attend_part_any(const Cache& cache, const bf16* q, const Span& span, int64_t begin, int64_t end, const Heads& h,
                     const Partial& out) {
  const int64_t num_blocks = (span.seen() + kBlock - 1) / kBlock;
  if (h.C == 32) attend_part<32>(cache, q, span.blocks, num_blocks, begin, end, h, out);
  if (h.C == 64) attend_part<64>(cache, q, span.blocks, num_blocks, begin, end, h, out);
  if (h.C == 128) attend_part<128>(cache, q, span.blocks, num_blocks, begin, end, h, out);
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
      attend_part_any(Bf16Cache{(const bf16*)keys.numbers, (const bf16*)values.numbers}, query, span, begin, end,
                      heads, partial(number));
    else
      attend_part_any(Int8Cache{(const int8_t*)keys.numbers, (const int8_t*)values.numbers, keys.scales, values.scales},
                      query, span, begin, end, heads, partial(number));
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
