// What all kernels use: 16 numbers at a time, and the threads of XLA.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using bf16 = uint16_t;

constexpr int64_t LANES = 16;

__m256i rounded_16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

// The numbers that are there, and zeros.
__m512 load(const float* from, __mmask16 there) { return _mm512_maskz_loadu_ps(there, from); }

__m512 load(const bf16* from, __mmask16 there) {
  return _mm512_cvtpbh_ps((__m256bh)_mm256_maskz_loadu_epi16(there, from));
}

void store(bf16* to, __mmask16 there, __m512 x) { _mm256_mask_storeu_epi16(to, there, rounded_16(x)); }

// exp(x) of x <= 0 to about 1e-7 of itself: 2^n by the exponent, the rest by Cephes' polynomial.
__m512 exponential(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
  __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 rest = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  rest = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), rest);
  __m512 y = _mm512_set1_ps(1.9875691500e-4f);
  for (float term : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(term));
  y = _mm512_fmadd_ps(_mm512_mul_ps(y, rest), rest, _mm512_add_ps(rest, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(y, n);
}

// Which of 16 columns from j on are among d.
__mmask16 columns(int64_t d, int64_t j) { return (1u << std::clamp<int64_t>(d - j, 0, LANES)) - 1; }

// work(0) to work(count - 1), by this thread and whichever of the pool's come in time; returns when all are done.
void share(ffi::ThreadPool& pool, int64_t count, std::function<void(int64_t)> work) {
  struct Shared {
    std::function<void(int64_t)> work;
    int64_t count;
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable finished;
    int64_t done = 0;
    void run() {
      int64_t mine = 0;
      for (int64_t index; (index = next.fetch_add(1)) < count; ++mine) {
        work(index);
      }
      if (!mine) return;
      std::lock_guard<std::mutex> lock(mutex);
      done += mine;
      if (done == count) finished.notify_all();
    }
  };
  auto shared = std::make_shared<Shared>();
  shared->work = std::move(work);
  shared->count = count;
  const int64_t helpers = std::min(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([shared] { shared->run(); });
  shared->run();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->finished.wait(lock, [&] { return shared->done == shared->count; });
}

using Array = ffi::Buffer<ffi::BF16>;
using Floats = ffi::Buffer<ffi::F32>;
using Integers = ffi::Buffer<ffi::S32>;
using Result = ffi::Result<Array>;
using FloatResult = ffi::Result<Floats>;

bf16* bits(const Array& array) { return reinterpret_cast<bf16*>(array.typed_data()); }

}  // namespace
