// Vectors of VECTOR float32 elements for the target processor, and a loop over channels.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastgan {

#if defined(__AVX512F__)
constexpr std::int64_t VECTOR = 16;
#elif defined(__AVX__)
constexpr std::int64_t VECTOR = 8;
#elif defined(__GNUC__)
constexpr std::int64_t VECTOR = 4;
#else
constexpr std::int64_t VECTOR = 1;
#endif

#ifdef __GNUC__
typedef float Vector __attribute__((vector_size(VECTOR * sizeof(float))));
#else
typedef float Vector;
#endif

template <typename V>
static inline V load(const float* from) {
    V value;
    std::memcpy(&value, from, sizeof value);  // may be unaligned
    return value;
}

template <typename V>
static inline void store(float* to, V value) {
    std::memcpy(to, &value, sizeof value);
}

// Prefetches NR = 2 * VECTOR elements.
static inline void prefetch(const float* from) {
#ifdef __GNUC__
    for (std::int64_t i = 0; i < 2 * VECTOR; i += 16) __builtin_prefetch(from + i);
#endif
}

// Calls body(Vector{}, c) for vectors of channels that begin at c, and body(float{}, c) for each remaining channel
template <typename Body>
static inline void for_each_vector(std::int64_t channels, Body body) {
    std::int64_t c = 0;
    for (; c + VECTOR <= channels; c += VECTOR) body(Vector{}, c);
    for (; VECTOR > 1 && c < channels; ++c) body(float{}, c);
}

}  // namespace fastgan
