// Elements of float32, bfloat16 and float16, which are widened to float32 and rounded from it to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

#include "fastgan/kernels.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace fastgan {

struct bfloat16 {
    std::uint16_t bits;
};
struct float16 {
    std::uint16_t bits;
};

template <typename To, typename From>
static inline To bits_of(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &value, sizeof to);
    return to;
}

static inline float widened(bfloat16 x) { return bits_of<float>(static_cast<std::uint32_t>(x.bits) << 16); }

static inline bfloat16 rounded_to_bfloat16(float x) {
    const std::uint32_t bits = bits_of<std::uint32_t>(x);
    const std::uint32_t nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const std::uint32_t nan = bits >> 16 | 0x40;
    return {static_cast<std::uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? nan : nearest)};
}

static inline float widened(float16 x) {
    const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000) << 16, rest = (x.bits & 0x7fffu) << 13;
    const std::uint32_t beyond = rest + 0x70000000;                                        // infinity and NaN
    const std::uint32_t finite = bits_of<std::uint32_t>(bits_of<float>(rest) * 0x1p112f);  // and subnormal numbers
    return bits_of<float>(sign | (rest >= 0x0f800000 ? beyond : finite));
}

static inline float16 rounded_to_float16(float x) {
    const std::uint32_t bits = bits_of<std::uint32_t>(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    const std::uint32_t normal = (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13;
    // the addition rounds
    const std::uint32_t subnormal = bits_of<std::uint32_t>(bits_of<float>(rest) + 0.5f) - 0x3f000000;
    const std::uint32_t beyond = rest > 0x7f800000 ? 0x7e00 : 0x7c00;
    const std::uint32_t magnitude = rest >= 0x477ff000 ? beyond : rest < 0x38800000 ? subnormal : normal;
    return {static_cast<std::uint16_t>(sign | magnitude)};
}

// `count` contiguous elements as float32: x itself, or `buffer` with widened elements.
static inline const float* widen(const float* x, std::int64_t, float*) { return x; }

static inline const float* widen(const bfloat16* x, std::int64_t count, float* buffer) {
    for (std::int64_t i = 0; i < count; ++i) buffer[i] = widened(x[i]);
    return buffer;
}

static inline const float* widen(const float16* x, std::int64_t count, float* buffer) {
    std::int64_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(buffer + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i))));
#endif
    for (; i < count; ++i) buffer[i] = widened(x[i]);
    return buffer;
}

// The memory for results: `out`, or `buffer`, from which `store_rounded` rounds them to `out`.
static inline float* output_buffer(float* out, float*) { return out; }
static inline float* output_buffer(bfloat16*, float* buffer) { return buffer; }
static inline float* output_buffer(float16*, float* buffer) { return buffer; }

static inline void store_rounded(const float*, std::int64_t, float*) {}

static inline void store_rounded(const float* from, std::int64_t count, bfloat16* out) {
    for (std::int64_t i = 0; i < count; ++i) out[i] = rounded_to_bfloat16(from[i]);
}

static inline void store_rounded(const float* from, std::int64_t count, float16* out) {
    std::int64_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= count; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < count; ++i) out[i] = rounded_to_float16(from[i]);
}

// Calls body(T{}) for the element type
template <typename Body>
static inline void with_type(DType dtype, Body body) {
    if (dtype == DType::float32) body(float{});
    if (dtype == DType::bfloat16) body(bfloat16{});
    if (dtype == DType::float16) body(float16{});
}

}  // namespace fastgan
