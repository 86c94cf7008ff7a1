// What XLA makes of several passes over memory, in one: a gated unit, rotation, the loss of logits, a norm's gradients.
#include <cmath>
#include <limits>

#include "common.h"

namespace {

constexpr int64_t PART = 1 << 14;  // numbers of a task

// work(i, which of 16 numbers from i on there are) for all n numbers, in tasks of PART.
template <typename Work>
void by_lanes(ffi::ThreadPool& pool, int64_t n, Work work) {
  share(pool, (n + PART - 1) / PART, [=](int64_t task) {
    const int64_t stop = std::min(n, (task + 1) * PART);
    for (int64_t i = task * PART; i < stop; i += LANES) work(i, columns(stop, i));
  });
}

__m512 logistic(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  __m512 small = exponential(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x)));
  __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  return _mm512_div_ps(_mm512_mask_mov_ps(one, negative, small), _mm512_add_ps(one, small));
}

// x logistic(x) times `up`, rounded.
ffi::Error gated_forward(ffi::ThreadPool pool, Floats gate, Floats up, Result out) {
  const float *gates = gate.typed_data(), *ups = up.typed_data();
  bf16* to = bits(*out);
  by_lanes(pool, gate.element_count(), [=](int64_t i, __mmask16 there) {
    __m512 x = load(gates + i, there);
    store(to + i, there, _mm512_mul_ps(_mm512_mul_ps(x, logistic(x)), load(ups + i, there)));
  });
  return ffi::Error::Success();
}

ffi::Error gated_backward(ffi::ThreadPool pool, Floats gate, Floats up, Floats to_out, Result to_gate, Result to_up) {
  const float *gates = gate.typed_data(), *ups = up.typed_data(), *slopes = to_out.typed_data();
  bf16 *gate_slopes = bits(*to_gate), *up_slopes = bits(*to_up);
  by_lanes(pool, gate.element_count(), [=](int64_t i, __mmask16 there) {
    __m512 x = load(gates + i, there), slope = load(slopes + i, there), share_of = logistic(x);
    __m512 unit = _mm512_mul_ps(x, share_of);
    // of x s(x): s + x s (1 - s)
    __m512 steep = _mm512_fmadd_ps(unit, _mm512_sub_ps(_mm512_set1_ps(1.0f), share_of), share_of);
    store(up_slopes + i, there, _mm512_mul_ps(slope, unit));
    store(gate_slopes + i, there, _mm512_mul_ps(_mm512_mul_ps(slope, load(ups + i, there)), steep));
  });
  return ffi::Error::Success();
}

// Of logits [n, v]: -log softmax at the target, the logarithm of the sum, and the gradient of
// weight * (-log softmax + z_loss * log_sum ** 2), rounded.
ffi::Error logits_loss(ffi::ThreadPool pool, float z_loss, Floats logits, Integers targets, Floats weights,
                       Result gradient, FloatResult nll, FloatResult log_sum) {
  const auto shape = logits.dimensions();
  const int64_t n = shape[0], v = shape[1];
  const float *from = logits.typed_data(), *weight_of = weights.typed_data();
  const int32_t* target_of = targets.typed_data();
  bf16* to = bits(*gradient);
  float *nlls = nll->typed_data(), *sums = log_sum->typed_data();
  share(pool, n, [=](int64_t row) {
    const float* x = from + row * v;
    bf16* slope = to + row * v;
    __m512 most = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    for (int64_t i = 0; i < v; i += LANES) {
      const __mmask16 there = columns(v, i);
      most = _mm512_mask_max_ps(most, there, most, load(x + i, there));
    }
    const float top = _mm512_reduce_max_ps(most);
    __m512 total = _mm512_setzero_ps();
    for (int64_t i = 0; i < v; i += LANES) {
      const __mmask16 there = columns(v, i);
      __m512 part = exponential(_mm512_sub_ps(load(x + i, there), _mm512_set1_ps(top)));
      total = _mm512_mask_add_ps(total, there, total, part);
    }
    const float sum = _mm512_reduce_add_ps(total), log_z = top + std::log(sum), weight = weight_of[row];
    const float scale = weight * (1 + 2 * z_loss * log_z) / sum;
    for (int64_t i = 0; i < v; i += LANES) {
      const __mmask16 there = columns(v, i);
      __m512 part = exponential(_mm512_sub_ps(load(x + i, there), _mm512_set1_ps(top)));
      store(slope + i, there, _mm512_mul_ps(part, _mm512_set1_ps(scale)));
    }
    const int32_t target = target_of[row];
    nlls[row] = log_z - x[target];
    sums[row] = log_z;
    const __m512 at_target = _mm512_set1_ps(std::exp(x[target] - top) * scale - weight);
    store(slope + target, 1, at_target);
  });
  return ffi::Error::Success();
}

// Gradients of x [n, d] and, in parts to be added up, of the gain [d] of x * scale [n] * gain, where scale is the
// inverse of x's root mean square.
ffi::Error norm_backward(ffi::ThreadPool pool, Floats x, Floats scale, Floats gain, Floats to_out, FloatResult to_x,
                         FloatResult to_gain) {
  const int64_t d = gain.element_count(), n = x.element_count() / d, parts = to_gain->dimensions()[0];
  const int64_t rows = (n + parts - 1) / parts;
  const float *values = x.typed_data(), *scales = scale.typed_data(), *gains = gain.typed_data();
  const float* slopes = to_out.typed_data();
  float *to = to_x->typed_data(), *gain_slopes = to_gain->typed_data();
  share(pool, parts, [=](int64_t part) {
    float* mine = gain_slopes + part * d;
    std::fill(mine, mine + d, 0.0f);
    for (int64_t row = part * rows; row < std::min(n, (part + 1) * rows); ++row) {
      const float *value = values + row * d, *slope = slopes + row * d;
      const __m512 by = _mm512_set1_ps(scales[row]);
      __m512 sum = _mm512_setzero_ps();
      for (int64_t i = 0; i < d; i += LANES) {
        const __mmask16 there = columns(d, i);
        __m512 both = _mm512_mul_ps(load(value + i, there), load(slope + i, there));
        _mm512_mask_storeu_ps(mine + i, there, _mm512_fmadd_ps(both, by, load(mine + i, there)));
        sum = _mm512_fmadd_ps(both, load(gains + i, there), sum);
      }
      const float s = scales[row];
      const __m512 along = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / d * s * s * s);
      for (int64_t i = 0; i < d; i += LANES) {
        const __mmask16 there = columns(d, i);
        __m512 scaled = _mm512_mul_ps(_mm512_mul_ps(load(slope + i, there), load(gains + i, there)), by);
        _mm512_mask_storeu_ps(to + row * d + i, there, _mm512_fnmadd_ps(load(value + i, there), along, scaled));
      }
    }
  });
  return ffi::Error::Success();
}

// x [rows, heads, d] turned by angles of cosine and sine [rows, d], its halves paired: (f, s) to
// (f cos - s sin, s cos + f sin), each half with its own angles; or the gradient of that, given the one of its result.
template <typename X, typename Input>
ffi::Error rotate(ffi::ThreadPool pool, bool back, Input x, Floats cosine, Floats sine, Result out) {
  const auto shape = x.dimensions();
  const int64_t d = shape[shape.size() - 1], heads = shape[shape.size() - 2], half = d / 2;
  const int64_t rows = x.element_count() / (heads * d);
  if (int64_t(cosine.element_count()) != rows * d || int64_t(sine.element_count()) != rows * d || d % 2)
    return ffi::Error::InvalidArgument("angles are [rows, d] of x [rows, heads, d], d even");
  const X* from = reinterpret_cast<const X*>(x.untyped_data());
  const float *cosines = cosine.typed_data(), *sines = sine.typed_data();
  bf16* to = bits(*out);
  const int64_t some = std::max<int64_t>(1, PART / (heads * d));
  share(pool, (rows + some - 1) / some, [=](int64_t task) {
    for (int64_t row = task * some; row < std::min(rows, (task + 1) * some); ++row) {
      const float *c = cosines + row * d, *s = sines + row * d;
      for (int64_t at = row * heads * d; at < (row + 1) * heads * d; at += d)
        for (int64_t i = 0; i < half; i += LANES) {
          const __mmask16 there = columns(half, i);
          const int64_t j = i + half;
          __m512 first = load(from + at + i, there), second = load(from + at + j, there);
          __m512 first_sine = load(s + i, there), second_sine = load(s + j, there);
          __m512 left = _mm512_mul_ps(first, load(c + i, there)), right = _mm512_mul_ps(second, load(c + j, there));
          left = back ? _mm512_fmadd_ps(second, second_sine, left) : _mm512_fnmadd_ps(second, first_sine, left);
          right = back ? _mm512_fnmadd_ps(first, first_sine, right) : _mm512_fmadd_ps(first, second_sine, right);
          store(to + at + i, there, left);
          store(to + at + j, there, right);
        }
    }
  });
  return ffi::Error::Success();
}

ffi::Error rotate_forward(ffi::ThreadPool pool, Floats x, Floats cosine, Floats sine, Result out) {
  return rotate<float>(pool, false, x, cosine, sine, out);
}

ffi::Error rotate_backward(ffi::ThreadPool pool, Array x, Floats cosine, Floats sine, Result out) {
  return rotate<bf16>(pool, true, x, cosine, sine, out);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    tony_gated_forward, gated_forward,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Ret<Array>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(tony_gated_backward, gated_backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Array>()
                                  .Ret<Array>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(tony_logits_loss, logits_loss,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<float>("z_loss")
                                  .Arg<Floats>()
                                  .Arg<Integers>()
                                  .Arg<Floats>()
                                  .Ret<Array>()
                                  .Ret<Floats>()
                                  .Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(tony_norm_backward, norm_backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    tony_rotate_forward, rotate_forward,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Ret<Array>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    tony_rotate_backward, rotate_backward,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Floats>().Arg<Floats>().Ret<Array>());
