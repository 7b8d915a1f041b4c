// Kernels for the engine on processors with AVX-512 and bfloat16 instructions. A decoded token reads every weight and
// the whole cache once, so what counts there is that memory streams and nothing waits between the products; a prompt is
// products of matrices, so what counts there is that the arithmetic never starves.
//
// `run_layers` takes a step's tokens through all blocks of the model in one call: the threads of one team meet at
// barriers instead of being woken for every product. Each function's plain PyTorch twin is named beside it in herd/ops.
// Memory is row-major, lengths are counts of elements.

#include <omp.h>
#include <sched.h>

#include <atomic>
#include <memory>

#include "linear.h"
#include "paged.h"

namespace {

// Threads that work through phases together. Each has its share of the pieces and takes them in order, so that it reads
// weights as one stream; who is done helps the others, and all wait for the last.
class Team {
 public:
  explicit Team(int size) : size(size), shares(3 * size) {}

  template <class Work>
  void each(int64_t count, int64_t& phase, Work work) {
    const int me = omp_get_thread_num();
    for (int i = 0; i < size; i++) {
      const int64_t whose = (me + i) % size, start = count * whose / size, end = count * (whose + 1) / size;
      std::atomic<int64_t>& taken = share(phase, whose).taken;
      for (int64_t n; start < end && (n = start + taken.fetch_add(1, std::memory_order_relaxed)) < end;) work(n);
    }
    wait(phase++);
  }

 private:
  struct alignas(64) Share {
    std::atomic<int64_t> taken{0};
  };

  const int size;
  std::vector<Share> shares;  // of three phases
  std::atomic<int64_t> arrived{0}, done{0};  // done: phases that all have left behind

  Share& share(int64_t phase, int64_t whose) { return shares[phase % 3 * size + whose]; }
  void wait(int64_t phase) {
    if (arrived.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
      arrived.store(0, std::memory_order_relaxed);
      for (int64_t i = 0; i < size; i++) share(phase + 2, i).taken.store(0, std::memory_order_relaxed);
      done.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; done.load(std::memory_order_acquire) <= phase; spins++) {
      if (spins < 4096) _mm_pause();
      else sched_yield();  // the others may need this core
    }
  }
};

// Run `work(team, phase)` on a team of threads.
template <class Work>
void with_team(int threads, Work work) {
  std::unique_ptr<Team> team;
#pragma omp parallel num_threads(threads)
  {
#pragma omp single
    team = std::make_unique<Team>(omp_get_num_threads());
    int64_t phase = 0;
    work(*team, phase);
  }
}

// 16 sums, or what is left of a row, as bfloat16.
inline void put16(bf16* at, __m512 value, int64_t left) {
  const __mmask16 mask = left >= 16 ? 0xffff : __mmask16((1u << left) - 1);
  _mm256_mask_storeu_epi16(at, mask, (__m256i)_mm512_cvtneps_pbh(value));
}

inline void store_panel(const float* sums, int64_t M, int64_t count, bf16* out, int64_t stride) {
  for (int64_t m = 0; m < M; m++)
    for (int64_t i = 0; i < count; i += 16) put16(out + m * stride + i, _mm512_loadu_ps(sums + m * kPanel + i), count - i);
}

inline void add_panel(const float* sums, int64_t M, int64_t count, bf16* out, int64_t stride) {  // D is a multiple of 64
  for (int64_t m = 0; m < M; m++)
    for (int64_t i = 0; i < count; i += 16) {
      bf16* at = out + m * stride + i;
      narrow16(at, _mm512_add_ps(widen16(at), _mm512_loadu_ps(sums + m * kPanel + i)));
    }
}

// Plain rows (M, K) into the layout of a product; columns past K become zeros.
inline void lay_out(const bf16* x, int64_t K, const Tokens& out, int64_t m) {
  for (int64_t k = 0; k < out.K; k += 32) {
    const int64_t left = std::max<int64_t>(0, std::min<int64_t>(32, K - k));
    const __mmask32 mask = left == 32 ? ~0u : (1u << left) - 1;
    _mm512_storeu_si512((void*)out.at(m, k), _mm512_maskz_loadu_epi16(mask, x + m * K + k));
  }
}

// The root-mean-square norm of row m (a multiple of 32 numbers), laid out for a product.
inline void norm_row(const bf16* x, const bf16* weight, int64_t D, float eps, const Tokens& out, int64_t m) {
  const bf16* row = x + m * D;
  __m512 squares = _mm512_setzero_ps();
  for (int64_t k = 0; k < D; k += 16) {
    const __m512 wide = widen16(row + k);
    squares = _mm512_fmadd_ps(wide, wide, squares);
  }
  const __m512 scale = _mm512_set1_ps(1 / std::sqrt(_mm512_reduce_add_ps(squares) / D + eps));
  for (int64_t k = 0; k < D; k += 16)
    narrow16(const_cast<bf16*>(out.at(m, k)), _mm512_mul_ps(_mm512_mul_ps(widen16(row + k), scale), widen16(weight + k)));
}

// The heads of one token, turned: x c + (its other half) s, the table holding each cosine twice and the signs of sines.
inline void turn(bf16* x, int64_t heads, int64_t C, const bf16* cos, const bf16* sin) {
  alignas(64) bf16 old[256];
  for (int64_t h = 0; h < heads; h++, x += C) {
    std::memcpy(old, x, sizeof(bf16) * C);
    for (int64_t c = 0; c < C; c += 16) {
      const __m512 other = widen16(old + (c + C / 2) % C);
      narrow16(x + c, _mm512_fmadd_ps(other, widen16(sin + c), _mm512_mul_ps(widen16(old + c), widen16(cos + c))));
    }
  }
}

// New keys or values of one head into the cache.
inline void put_in_cache(void* numbers, bf16* scales, int64_t at, const bf16* x, int64_t C) {
  if (scales == nullptr) {
    std::memcpy((bf16*)numbers + at * C, x, sizeof(bf16) * C);
    return;
  }
  __m512 most = _mm512_setzero_ps();
  for (int64_t c = 0; c < C; c += 16) most = _mm512_max_ps(most, _mm512_abs_ps(widen16(x + c)));
  scales[at] = round_to_bf16(std::max(_mm512_reduce_max_ps(most) / 127, 1e-30f));
  const __m512 scale = _mm512_set1_ps(widen(scales[at])), limit = _mm512_set1_ps(127);
  for (int64_t c = 0; c < C; c += 16) {
    __m512 q = _mm512_roundscale_ps(_mm512_div_ps(widen16(x + c), scale), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    q = _mm512_min_ps(_mm512_max_ps(q, _mm512_sub_ps(_mm512_setzero_ps(), limit)), limit);
    _mm_storeu_si128((__m128i*)((int8_t*)numbers + at * C + c), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(q)));
  }
}

// One block of the model, as it travels over the border.
struct Layer {
  Linear q, k, v, o, gate, up, down;
  const bf16 *input_norm, *post_norm;
  void *keys, *values;
  bf16 *key_scales, *value_scales;  // null: the cache is bfloat16
};

// A step of the engine, as it travels over the border.
struct Step {
  int64_t num_layers;
  const Layer* layers;
  int64_t M, D, F, H, K, C;
  bf16* x;                    // (M, D): embeddings, and in the end hidden states before the last norm
  const bf16 *cos, *sin;      // (M, C)
  const int64_t* slots;       // (M)
  int64_t num_spans;
  const Span* spans;
};

// The forms of tokens that the layers' weights read, a bit each.
inline int64_t forms_of(const Step& s) {
  int64_t forms = 0;
  for (int64_t n = 0; n < s.num_layers; n++) {
    const Layer& layer = s.layers[n];
    for (const Linear* linear : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down})
      forms |= 1 << linear->form();
  }
  return forms;
}

struct Buffers {
  TokenRoom normed, attended, gated;
  std::vector<bf16> q, k, v;

  Buffers(const Step& s, int64_t forms)
      : normed(s.M, s.D, forms), attended(s.M, s.H * s.C, forms), gated(s.M, s.layers[0].down.K, forms),
        q(s.M * s.H * s.C), k(s.M * s.K * s.C), v(k.size()) {}
};

// What a thread keeps from phase to phase.
struct Worker {
  Scratch scratch, other;
  Packed packed;
};

void run_layer(const Step& s, const Layer& layer, float eps, Buffers& b, Attention& attention, Team& team, int64_t& phase,
               Worker& mine) {
  const int64_t M = s.M;
  const Tokens &normed = b.normed.tokens, &gated = b.gated.tokens;
  auto norm = [&](const bf16* weight) {
    team.each(M, phase, [&](int64_t m) {
      norm_row(s.x, weight, s.D, eps, normed, m);
      fill_forms(normed, m);
    });
  };
  norm(layer.input_norm);
  const Linear* three[] = {&layer.q, &layer.k, &layer.v};
  bf16* to[] = {b.q.data(), b.k.data(), b.v.data()};
  const int64_t of_q = layer.q.num_panels(), of_k = layer.k.num_panels();
  team.each(of_q + 2 * of_k, phase, [&](int64_t i) {
    const int which = i < of_q ? 0 : i < of_q + of_k ? 1 : 2;
    const int64_t panel = which == 0 ? i : which == 1 ? i - of_q : i - of_q - of_k;
    float* sums = mine.scratch.sums_of(M);
    const int64_t count = three[which]->panel(panel, normed, sums, mine.scratch);
    store_panel(sums, M, count, to[which] + panel * kPanel, three[which]->N);
  });
  team.each(M, phase, [&](int64_t m) {
    turn(b.q.data() + m * s.H * s.C, s.H, s.C, s.cos + m * s.C, s.sin + m * s.C);
    turn(b.k.data() + m * s.K * s.C, s.K, s.C, s.cos + m * s.C, s.sin + m * s.C);
    for (int64_t head = 0; head < s.K; head++) {
      put_in_cache(layer.keys, layer.key_scales, s.slots[m] * s.K + head, b.k.data() + (m * s.K + head) * s.C, s.C);
      put_in_cache(layer.values, layer.value_scales, s.slots[m] * s.K + head, b.v.data() + (m * s.K + head) * s.C, s.C);
    }
  });
  team.each(attention.num_units(), phase, [&](int64_t i) { attention.unit(i, mine.packed); });
  team.each(s.num_spans, phase, [&](int64_t n) { attention.combine(n); });
  auto add = [&](const Linear& linear, const Tokens& x) {
    if (x.have_forms()) team.each(M, phase, [&](int64_t m) { fill_forms(x, m); });
    team.each(linear.num_panels(), phase, [&](int64_t panel) {
      float* sums = mine.scratch.sums_of(M);
      const int64_t count = linear.panel(panel, x, sums, mine.scratch);
      add_panel(sums, M, count, s.x + panel * kPanel, s.D);
    });
  };
  add(layer.o, attention.out);
  norm(layer.post_norm);
  const int64_t panels = layer.gate.num_panels(), together = M <= kFewTokens ? 4 : 1;  // panels that are one stream
  team.each((panels + together - 1) / together, phase, [&](int64_t unit) {
    const int64_t begin = unit * together, end = std::min(begin + together, panels);
    float *gates = mine.scratch.sums_of(together * M), *up = mine.other.sums_of(M);
    for (int64_t panel = begin; panel < end; panel++)
      layer.gate.panel(panel, normed, gates + (panel - begin) * M * kPanel, mine.scratch);
    for (int64_t panel = begin; panel < end; panel++) {
      const float* gate = gates + (panel - begin) * M * kPanel;
      const int64_t count = layer.up.panel(panel, normed, up, mine.scratch);
      for (int64_t m = 0; m < M; m++)
        for (int64_t i = 0; i < count; i += 16) {  // F is a multiple of 32
          const __m512 product = _mm512_mul_ps(silu(_mm512_loadu_ps(gate + m * kPanel + i)), _mm512_loadu_ps(up + m * kPanel + i));
          narrow16(const_cast<bf16*>(gated.at(m, panel * kPanel + i)), product);
        }
    }
  });
  add(layer.down, gated);
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

}  // namespace

extern "C" {

// A step's tokens through all blocks; x is changed in place.
void run_layers(const Step* step, float eps, int threads) {
  const Step& s = *step;
  Buffers buffers(s, forms_of(s));
  Attention attention(s.spans, s.num_spans, Heads{s.H, s.K, s.C, 1 / std::sqrt(float(s.C))}, threads);
  attention.q = buffers.q.data();
  attention.out = buffers.attended.tokens;
  with_team(threads, [&](Team& team, int64_t& phase) {
    thread_local Worker mine;
    for (int64_t n = 0; n < s.num_layers; n++) {
      const Layer& layer = s.layers[n];
      team.each(1, phase, [&](int64_t) {
        attention.keys = Pool{layer.keys, layer.key_scales};
        attention.values = Pool{layer.values, layer.value_scales};
      });
      run_layer(s, layer, eps, buffers, attention, team, phase, mine);
    }
  });
}

// x (M, K) times the transpose of the layer's weights -> y (M, N).
void linear(const Linear* layer, const bf16* x, bf16* y, int64_t M, int64_t K, int threads) {
  if (M == 0) return;  // a step that ends no prompt asks for no logits
  const TokenRoom room(M, layer->K, 1 << layer->form());
  const Tokens& tokens = room.tokens;
  with_team(threads, [&](Team& team, int64_t& phase) {
    thread_local Worker mine;
    team.each(M, phase, [&](int64_t m) {
      lay_out(x, K, tokens, m);
      fill_forms(tokens, m);
    });
    team.each(layer->num_panels(), phase, [&](int64_t panel) {
      float* sums = mine.scratch.sums_of(M);
      const int64_t count = layer->panel(panel, tokens, sums, mine.scratch);
      store_panel(sums, M, count, y + panel * kPanel, layer->N);
    });
  });
}

// q and out (M, H, C); keys and values are one layer's pools.
void attend(const bf16* q, const void* keys, const void* values, const bf16* key_scales, const bf16* value_scales,
            const Span* spans, int64_t num_spans, bf16* out, int64_t M, int64_t H, int64_t K, int64_t C, int threads) {
  Attention attention(spans, num_spans, Heads{H, K, C, 1 / std::sqrt(float(C))}, threads);
  attention.q = q, attention.keys = Pool{keys, key_scales}, attention.values = Pool{values, value_scales};
  attention.out = Tokens{out, M, H * C, H * C};
  with_team(threads, [&](Team& team, int64_t& phase) {
    thread_local Worker mine;
    team.each(attention.num_units(), phase, [&](int64_t i) { attention.unit(i, mine.packed); });
    team.each(num_spans, phase, [&](int64_t n) { attention.combine(n); });
  });
}

// Rows of bfloat16 to bytes, as `_quantize_tile` of quantized.py does: the scale is rounded up, so that no weight is cut.
void quantize_int8(const bf16* weight, int8_t* out, bf16* scales, int64_t N, int64_t K, int num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static)
  for (int64_t n = 0; n < N; n++) {
    const bf16* row = weight + n * K;
    __m512 most = _mm512_setzero_ps();
    for (int64_t k = 0; k < K; k += 16) most = _mm512_max_ps(most, _mm512_abs_ps(widen16(row + k)));
    const float exact = _mm512_reduce_max_ps(most) / 127;
    bf16 scale = round_to_bf16(exact);
    if (widen(scale) < exact) scale++;  // the next number up
    if (!(widen(scale) > 0)) scale = 0x3f80;  // 1
    scales[n] = scale;
    const __m512 divisor = _mm512_set1_ps(widen(scale)), limit = _mm512_set1_ps(127);
    for (int64_t k = 0; k < K; k += 16) {
      const __m512 value = _mm512_div_ps(widen16(row + k), divisor);
      __m512 whole = _mm512_roundscale_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      whole = _mm512_max_ps(_mm512_min_ps(whole, limit), _mm512_sub_ps(_mm512_setzero_ps(), limit));
      _mm_storeu_si128((__m128i*)(out + n * K + k), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(whole)));
    }
  }
}

// 64 nibbles at a time from their plain order (2i and 2i + 1 in a byte) to that of the weights (i and i + 32).
void pair_nibbles(const uint8_t* in_order, uint8_t* out, int64_t num_steps, int num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static)
  for (int64_t step = 0; step < num_steps; step++) {
    const __m128i first = _mm_loadu_si128((const __m128i*)(in_order + step * 32));
    const __m128i last = _mm_loadu_si128((const __m128i*)(in_order + step * 32 + 16));
    const __m128i low = _mm_set1_epi8(15), high = _mm_set1_epi8(int8_t(0xf0));
    const __m128i even = _mm_or_si128(_mm_and_si128(first, low), _mm_and_si128(_mm_slli_epi16(last, 4), high));
    const __m128i odd = _mm_or_si128(_mm_and_si128(_mm_srli_epi16(first, 4), low), _mm_and_si128(last, high));
    _mm_storeu_si128((__m128i*)(out + step * 32), _mm_unpacklo_epi8(even, odd));
    _mm_storeu_si128((__m128i*)(out + step * 32 + 16), _mm_unpackhi_epi8(even, odd));
  }
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
}
