// Attention over packed rows, forward and backward, on CPUs that multiply bfloat16: with AMX tiles, else AVX-512.
//
// Legend: l length, L = l rounded up to BLOCK, d head width, D = d rounded up to BLOCK, r queries of a group of heads
// that share keys. A task is a row of the batch and such a group; its keys stay in a core's cache meanwhile.
//
// Operands of products are laid out beforehand. "Left" ones are plain rows of bfloat16. "Right" ones [depth, columns]
// are panels of 16 columns, in which a line of 64 bytes is two consecutive depths of each column, as the instructions
// want them.
#include <cmath>
#include <limits>
#include <unordered_map>
#include <utility>
#include <vector>

#if defined(__AMX_BF16__) && !defined(TONY_NO_TILES)
#define TILES 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "common.h"

namespace {

constexpr int64_t BLOCK = 32;  // what all extents of products are multiples of
constexpr float HIDDEN = -1e30f;  // score of what may not be seen

int64_t rounded(int64_t n) { return (n + BLOCK - 1) / BLOCK * BLOCK; }

// ------------------------------------------------------------------------------------------------------- products

#ifdef TILES

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

struct Tiles {  // a thread's tile registers, while it uses them
  Tiles() {
    static const TileShapes shapes;
    _tile_loadconfig(&shapes);
  }
  ~Tiles() { _tile_release(); }
};

bool permitted() {
  constexpr int REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM of arch_prctl; XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

// c [m, n] = left [m, k] right [k, n], or c plus it. A panel of `right` has `depth` depths in all.
void product(float* c, int64_t ldc, const bf16* left, int64_t ldl, const bf16* right, int64_t depth, int64_t m,
             int64_t n, int64_t k, bool add) {
  for (int64_t i = 0; i < m; i += BLOCK) {
    for (int64_t j = 0; j < n; j += BLOCK) {
      float* here = c + i * ldc + j;
      float* below = here + LANES * ldc;
      if (add) {
        _tile_loadd(0, here, ldc * 4);
        _tile_loadd(1, here + LANES, ldc * 4);
        _tile_loadd(2, below, ldc * 4);
        _tile_loadd(3, below + LANES, ldc * 4);
      } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      }
      const bf16* panel = right + j * depth;
      for (int64_t p = 0; p < k; p += BLOCK) {
        _tile_loadd(4, left + i * ldl + p, ldl * 2);
        _tile_loadd(5, left + (i + LANES) * ldl + p, ldl * 2);
        _tile_loadd(6, panel + p * LANES, 64);
        _tile_loadd(7, panel + (p + depth) * LANES, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, here, ldc * 4);
      _tile_stored(1, here + LANES, ldc * 4);
      _tile_stored(2, below, ldc * 4);
      _tile_stored(3, below + LANES, ldc * 4);
    }
  }
}

#else

struct Tiles {
  Tiles() {}
};

bool permitted() { return true; }

void product(float* c, int64_t ldc, const bf16* left, int64_t ldl, const bf16* right, int64_t depth, int64_t m,
             int64_t n, int64_t k, bool add) {
  for (int64_t i = 0; i < m; i += LANES) {
    for (int64_t j = 0; j < n; j += LANES) {
      __m512 sums[LANES];
      for (int row = 0; row < LANES; ++row)
        sums[row] = add ? _mm512_loadu_ps(c + (i + row) * ldc + j) : _mm512_setzero_ps();
      const bf16* panel = right + j * depth;
      for (int64_t p = 0; p < k; p += 2) {
        __m512bh two = (__m512bh)_mm512_loadu_si512(panel + p * LANES);
        for (int row = 0; row < LANES; ++row) {
          int32_t pair = *reinterpret_cast<const int32_t*>(left + (i + row) * ldl + p);
          sums[row] = _mm512_dpbf16_ps(sums[row], (__m512bh)_mm512_set1_epi32(pair), two);
        }
      }
      for (int row = 0; row < LANES; ++row) _mm512_storeu_ps(c + (i + row) * ldc + j, sums[row]);
    }
  }
}

#endif

// Of two lines of 16 values a line of 16 pairs.
__m512i paired(__m256i first, __m256i second) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
}

// ----------------------------------------------------------------------------------------------------- layouts

// Rows [l, d], `stride` apart, as zero-padded rows [L, D].
void to_left(const bf16* from, int64_t stride, int64_t l, int64_t d, bf16* to) {
  const int64_t L = rounded(l), D = rounded(d);
  for (int64_t i = 0; i < L; ++i)
    for (int64_t j = 0; j < D; j += LANES) {
      __mmask16 there = i < l ? columns(d, j) : 0;
      _mm256_storeu_si256((__m256i*)(to + i * D + j), _mm256_maskz_loadu_epi16(there, from + i * stride + j));
    }
}

// d numbers as bfloat16, times `scale`.
void to_row(const float* from, int64_t d, float scale, bf16* to) {
  for (int64_t j = 0; j < d; j += LANES) {
    const __mmask16 there = columns(d, j);
    store(to + j, there, _mm512_mul_ps(load(from + j, there), _mm512_set1_ps(scale)));
  }
}

// The inner product of d numbers.
float inner(const bf16* left, const bf16* right, int64_t d) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t j = 0; j < d; j += LANES) {
    const __mmask16 there = columns(d, j);
    sum = _mm512_fmadd_ps(load(left + j, there), load(right + j, there), sum);
  }
  return _mm512_reduce_add_ps(sum);
}

// Rows [L, D] transposed: [D, L + BLOCK], the last columns unused (rows a power of two apart would share cache lines).
void to_turned(const bf16* from, int64_t L, int64_t D, bf16* to) {
  for (int64_t i = 0; i < L; ++i)
    for (int64_t j = 0; j < D; ++j) to[j * (L + BLOCK) + i] = from[i * D + j];
}

// Rows [L, D] as a right operand of depth L.
void to_right(const bf16* from, int64_t L, int64_t D, bf16* to) {
  for (int64_t j = 0; j < D; j += LANES)
    for (int64_t i = 0; i < L; i += 2) {
      const bf16* here = from + i * D + j;
      __m512i pairs = paired(_mm256_loadu_si256((const __m256i*)here), _mm256_loadu_si256((const __m256i*)(here + D)));
      _mm512_storeu_si512(to + j * L + i * LANES, pairs);
    }
}

// Rows [L, D], transposed, as a right operand of depth D.
void to_right_turned(const bf16* from, int64_t L, int64_t D, bf16* to) {
  for (int64_t i = 0; i < L; i += LANES)
    for (int64_t row = 0; row < LANES; ++row) {
      const int32_t* pairs = reinterpret_cast<const int32_t*>(from + (i + row) * D);
      int32_t* panel = reinterpret_cast<int32_t*>(to + i * D) + row;
      for (int64_t j = 0; j < D / 2; ++j) panel[j * LANES] = pairs[j];
    }
}

// ------------------------------------------------------------------------------------------------------- who sees whom

struct Shape {
  int64_t batch, l, heads, groups, d, past, future;
  int64_t L() const { return rounded(l); }
  int64_t D() const { return rounded(d); }
  int64_t r() const { return heads / groups; }
};

// A row's segments, -1 beyond its end, and which keys a block of queries may see, or which queries a block of keys.
struct Sight {
  std::vector<int32_t> segments, first, last;  // first and last token of one's segment

  void read(const int32_t* given, const Shape& shape) {
    const int32_t L = shape.L(), l = shape.l;
    segments.assign(L, -1);
    std::copy(given, given + l, segments.begin());
    first.resize(L);
    last.resize(L);
    std::unordered_map<int32_t, int32_t> seen;
    for (int32_t i = 0; i < L; ++i)
      first[i] = i && segments[i] == segments[i - 1] ? first[i - 1] : seen.try_emplace(segments[i], i).first->second;
    seen.clear();
    for (int32_t i = L - 1; i >= 0; --i)
      last[i] = i + 1 < L && segments[i] == segments[i + 1] ? last[i + 1]
                                                            : seen.try_emplace(segments[i], i).first->second;
  }

  // [start, stop) in whole blocks of what lies at most `before` tokens before and `after` after a block's tokens.
  std::pair<int64_t, int64_t> range(int64_t block, int64_t before, int64_t after) const {
    int64_t start = block, stop = block + BLOCK;
    for (int64_t i = block; i < block + BLOCK; ++i) {
      start = std::min(start, std::max<int64_t>(first[i], i - before));
      stop = std::max(stop, std::min<int64_t>(last[i], i + after) + 1);
    }
    return {start / BLOCK * BLOCK, rounded(stop)};
  }
};

const __m512i COUNT = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);

// Which of 16 tokens from `other` on are of the segment and at most `before` tokens before and `after` after `own`.
__mmask16 seen(const Sight& sight, int64_t own, int64_t other, int64_t before, int64_t after) {
  __m512i segments = _mm512_loadu_si512(sight.segments.data() + other);
  __mmask16 same = _mm512_cmpeq_epi32_mask(segments, _mm512_set1_epi32(sight.segments[own]));
  __m512i ahead = _mm512_add_epi32(COUNT, _mm512_set1_epi32(int32_t(other - own)));
  return same & _mm512_cmple_epi32_mask(ahead, _mm512_set1_epi32(after)) &
         _mm512_cmpge_epi32_mask(ahead, _mm512_set1_epi32(-before));
}

// ----------------------------------------------------------------------------------------------------------- work

// A thread's memory: pieces aligned to cache lines, kept from call to call.
class Scratch {
 public:
  void reset(size_t bytes) {
    if (held_.size() < bytes + 4096) held_.resize(bytes + 4096);
    next_ = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(held_.data()) + 63) / 64 * 64);
  }
  template <typename T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(next_);
    next_ += (count * sizeof(T) + 63) / 64 * 64;
    return piece;
  }

 private:
  std::vector<uint8_t> held_;
  uint8_t* next_ = nullptr;
};

thread_local Scratch scratch;
thread_local Sight sight;

struct Inputs {
  const bf16 *q, *k, *v;
  const int32_t* segments;
};

void forward(const Shape& shape, const Inputs& in, bf16* out, float* log_total, int64_t row, int64_t group) {
  const int64_t l = shape.l, L = shape.L(), d = shape.d, D = shape.D(), lds = L + LANES, ldw = L + BLOCK;
  const int64_t own = shape.heads * d, shared = shape.groups * d;
  scratch.reset((3 * L * D + BLOCK * (D + ldw)) * sizeof(bf16) + BLOCK * (lds + D) * sizeof(float));
  bf16 *rows = scratch.take<bf16>(L * D), *keys = scratch.take<bf16>(L * D), *values = scratch.take<bf16>(L * D);
  bf16 *queries = scratch.take<bf16>(BLOCK * D), *weights = scratch.take<bf16>(BLOCK * ldw);
  float *scores = scratch.take<float>(BLOCK * lds), *made = scratch.take<float>(BLOCK * D);
  sight.read(in.segments + row * l, shape);
  to_left(in.k + row * l * shared + group * d, shared, l, d, rows);
  to_right_turned(rows, L, D, keys);
  to_left(in.v + row * l * shared + group * d, shared, l, d, rows);
  to_right(rows, L, D, values);
  for (int64_t head = group * shape.r(); head < (group + 1) * shape.r(); ++head) {
    for (int64_t block = 0; block < L; block += BLOCK) {
      const auto [start, stop] = sight.range(block, shape.past, shape.future);
      const int64_t n = stop - start, real = std::min(BLOCK, l - block);
      to_left(in.q + (row * l + block) * own + head * d, own, real, d, queries);
      product(scores, lds, queries, D, keys + start * D, D, BLOCK, n, D, false);
      float totals[BLOCK];
      for (int64_t i = 0; i < BLOCK; ++i) {
        if (i >= real) {
          std::fill(weights + i * ldw, weights + i * ldw + n, 0);
          continue;
        }
        float* score = scores + i * lds;
        __m512 most = _mm512_set1_ps(HIDDEN);
        for (int64_t j = 0; j < n; j += LANES) {
          __mmask16 there = seen(sight, block + i, start + j, shape.past, shape.future);
          __m512 x = _mm512_mask_loadu_ps(_mm512_set1_ps(HIDDEN), there, score + j);
          _mm512_storeu_ps(score + j, x);
          most = _mm512_max_ps(most, x);
        }
        const float top = _mm512_reduce_max_ps(most);
        __m512 total = _mm512_setzero_ps();
        for (int64_t j = 0; j < n; j += LANES) {
          __m512 x = exponential(_mm512_sub_ps(_mm512_loadu_ps(score + j), _mm512_set1_ps(top)));
          total = _mm512_add_ps(total, x);
          _mm256_storeu_si256((__m256i*)(weights + i * ldw + j), rounded_16(x));
        }
        totals[i] = _mm512_reduce_add_ps(total);
        log_total[(row * l + block + i) * shape.heads + head] = top + std::log(totals[i]);
      }
      product(made, D, weights, ldw, values + start * LANES, L, BLOCK, D, n, false);
      for (int64_t i = 0; i < real; ++i) {
        to_row(made + i * D, d, 1 / totals[i], out + (row * l + block + i) * own + head * d);
      }
    }
  }
}

struct Gradients {
  const bf16 *out, *to_out;
  const float* log_total;
  bf16 *to_q, *to_k, *to_v;
};

// Dao et al. 2022, "FlashAttention", appendix B.2, by blocks of keys: scores and their gradients are [keys, queries].
void backward(const Shape& shape, const Inputs& in, const Gradients& gradients, int64_t row, int64_t group) {
  const int64_t l = shape.l, L = shape.L(), d = shape.d, D = shape.D(), wide = L + BLOCK, lds = L + LANES;
  const int64_t own = shape.heads * d, shared = shape.groups * d, r = shape.r();
  scratch.reset((2 * L * D + D * wide + 4 * r * L * D + L * D + 2 * BLOCK * wide + BLOCK * L) * sizeof(bf16) +
                (2 * r * L + r * D * lds + 2 * BLOCK * lds + 2 * BLOCK * D) * sizeof(float));
  bf16 *keys = scratch.take<bf16>(L * D), *values = scratch.take<bf16>(L * D);
  bf16 *keys_turned = scratch.take<bf16>(D * wide), *rows = scratch.take<bf16>(L * D);
  bf16 *queries = scratch.take<bf16>(r * L * D), *queries_turned = scratch.take<bf16>(r * L * D);
  bf16 *to_out = scratch.take<bf16>(r * L * D), *to_out_turned = scratch.take<bf16>(r * L * D);
  bf16 *weights = scratch.take<bf16>(BLOCK * wide), *to_scores = scratch.take<bf16>(BLOCK * wide);
  bf16* to_scores_right = scratch.take<bf16>(BLOCK * L);
  float *delta = scratch.take<float>(r * L), *log_total = scratch.take<float>(r * L);
  float* to_q = scratch.take<float>(r * D * lds);  // [D, L] of each head
  float *scores = scratch.take<float>(BLOCK * lds), *to_weights = scratch.take<float>(BLOCK * lds);
  float *to_k = scratch.take<float>(BLOCK * D), *to_v = scratch.take<float>(BLOCK * D);

  sight.read(in.segments + row * l, shape);
  to_left(in.k + row * l * shared + group * d, shared, l, d, keys);
  to_turned(keys, L, D, keys_turned);
  to_left(in.v + row * l * shared + group * d, shared, l, d, values);
  std::fill(to_q, to_q + r * D * lds, 0.0f);
  for (int64_t h = 0; h < r; ++h) {
    const int64_t at = row * l * own + (group * r + h) * d;
    to_left(in.q + at, own, l, d, rows);
    to_right(rows, L, D, queries + h * L * D);
    to_right_turned(rows, L, D, queries_turned + h * L * D);
    to_left(gradients.to_out + at, own, l, d, rows);
    to_right(rows, L, D, to_out + h * L * D);
    to_right_turned(rows, L, D, to_out_turned + h * L * D);
    for (int64_t i = 0; i < L; ++i) {
      delta[h * L + i] = i < l ? inner(gradients.to_out + at + i * own, gradients.out + at + i * own, d) : 0;
      log_total[h * L + i] = i < l ? gradients.log_total[(row * l + i) * shape.heads + group * r + h]
                                   : std::numeric_limits<float>::infinity();
    }
  }
  for (int64_t block = 0; block < L; block += BLOCK) {
    const auto [start, stop] = sight.range(block, shape.future, shape.past);  // of keys: the other way round
    const int64_t n = stop - start;
    for (int64_t h = 0; h < r; ++h) {
      const int64_t at = h * L * D;
      product(scores, lds, keys + block * D, D, queries_turned + at + start * D, D, BLOCK, n, D, false);
      product(to_weights, lds, values + block * D, D, to_out_turned + at + start * D, D, BLOCK, n, D, false);
      for (int64_t i = 0; i < BLOCK; i += 2) {
        for (int64_t j = 0; j < n; j += LANES) {
          __m256i both[2];
          for (int64_t row_of_two = 0; row_of_two < 2; ++row_of_two) {
            const int64_t key = i + row_of_two;
            __mmask16 there = seen(sight, block + key, start + j, shape.future, shape.past);
            __m512 weight = _mm512_sub_ps(_mm512_loadu_ps(scores + key * lds + j),
                                          _mm512_loadu_ps(log_total + h * L + start + j));
            weight = _mm512_maskz_mov_ps(there, exponential(weight));
            __m512 slope = _mm512_sub_ps(_mm512_loadu_ps(to_weights + key * lds + j),
                                         _mm512_loadu_ps(delta + h * L + start + j));
            both[row_of_two] = rounded_16(_mm512_mul_ps(weight, slope));
            _mm256_storeu_si256((__m256i*)(weights + key * wide + j), rounded_16(weight));
            _mm256_storeu_si256((__m256i*)(to_scores + key * wide + j), both[row_of_two]);
          }
          _mm512_storeu_si512(to_scores_right + j * BLOCK + i * LANES, paired(both[0], both[1]));
        }
      }
      product(to_v, D, weights, wide, to_out + at + start * LANES, L, BLOCK, D, n, h > 0);
      product(to_k, D, to_scores, wide, queries + at + start * LANES, L, BLOCK, D, n, h > 0);
      product(to_q + h * D * lds + start, lds, keys_turned + block, wide, to_scores_right, BLOCK, D, n, BLOCK, true);
    }
    for (int64_t i = 0; i < std::min(BLOCK, l - block); ++i) {
      const int64_t to = (row * l + block + i) * shared + group * d;
      to_row(to_k + i * D, d, 1, gradients.to_k + to);
      to_row(to_v + i * D, d, 1, gradients.to_v + to);
    }
  }
  for (int64_t h = 0; h < r; ++h) {
    bf16* to = gradients.to_q + row * l * own + (group * r + h) * d;
    const float* from = to_q + h * D * lds;
    for (int64_t i = 0; i < l; i += LANES)
      for (int64_t j = 0; j < d; ++j) {
        bf16 column[LANES];
        _mm256_storeu_si256((__m256i*)column, rounded_16(_mm512_loadu_ps(from + j * lds + i)));
        for (int64_t k = 0; k < std::min(LANES, l - i); ++k) to[(i + k) * own + j] = column[k];
      }
  }
}

// ----------------------------------------------------------------------------------------------------- for XLA

// The batch is all axes but the last three of q [..., l, heads, d].
ffi::ErrorOr<Shape> shape_of(const Array& q, const Array& k, const Integers& segments, int64_t past, int64_t future) {
  const auto queries = q.dimensions(), keys = k.dimensions();
  const size_t axes = queries.size();
  if (axes < 4 || keys.size() != axes) return ffi::Unexpected(ffi::Error::InvalidArgument("q and k: [b, l, heads, d]"));
  Shape shape{1, queries[axes - 3], queries[axes - 2], keys[axes - 2], queries[axes - 1], past, future};
  for (size_t axis = 0; axis + 3 < axes; ++axis) shape.batch *= queries[axis];
  if (shape.heads % shape.groups || keys[axes - 3] != shape.l || keys[axes - 1] != shape.d ||
      int64_t(segments.element_count()) != shape.batch * shape.l)
    return ffi::Unexpected(ffi::Error::InvalidArgument("q, k and segments are of different lengths or heads"));
  return shape;
}

// work(row of the batch, group of heads) for all of them, with tiles.
template <typename Work>
void by_group(ffi::ThreadPool& pool, const Shape& shape, Work work) {
  share(pool, shape.batch * shape.groups, [work, groups = shape.groups](int64_t task) {
    Tiles tiles;
    work(task / groups, task % groups);
  });
}

ffi::Error attention_forward(ffi::ThreadPool pool, int64_t past, int64_t future, Array q, Array k, Array v,
                             Integers segments, Result out, FloatResult log_total) {
  auto known = shape_of(q, k, segments, past, future);
  if (known.has_error()) return known.error();
  const Shape shape = *known;
  const Inputs in{bits(q), bits(k), bits(v), segments.typed_data()};
  bf16* to = bits(*out);
  float* logs = log_total->typed_data();
  by_group(pool, shape, [=](int64_t row, int64_t group) { forward(shape, in, to, logs, row, group); });
  return ffi::Error::Success();
}

ffi::Error attention_backward(ffi::ThreadPool pool, int64_t past, int64_t future, Array q, Array k, Array v,
                              Integers segments, Array out, Floats log_total, Array to_out, Result to_q, Result to_k,
                              Result to_v) {
  auto known = shape_of(q, k, segments, past, future);
  if (known.has_error()) return known.error();
  const Shape shape = *known;
  const Inputs in{bits(q), bits(k), bits(v), segments.typed_data()};
  const Gradients gradients{bits(out), bits(to_out), log_total.typed_data(), bits(*to_q), bits(*to_k), bits(*to_v)};
  by_group(pool, shape, [=](int64_t row, int64_t group) { backward(shape, in, gradients, row, group); });
  return ffi::Error::Success();
}

}  // namespace

extern "C" bool tony_permitted() { return permitted(); }

XLA_FFI_DEFINE_HANDLER_SYMBOL(tony_attention_forward, attention_forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<int64_t>("past")
                                  .Attr<int64_t>("future")
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Integers>()
                                  .Ret<Array>()
                                  .Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(tony_attention_backward, attention_backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<int64_t>("past")
                                  .Attr<int64_t>("future")
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Integers>()
                                  .Arg<Array>()
                                  .Arg<Floats>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>());
