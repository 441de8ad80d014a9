// A vector of float32 of the processor that this file is compiled for, and a loop over channels that uses it.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace fastgan::FASTGAN_ISA {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#elif defined(__GNUC__)
constexpr int LANES = 4;
#else
constexpr int LANES = 1;
#endif

#ifdef __GNUC__
typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));
#else
typedef float Vector;
#endif

template <typename V>
static inline V load(const float* from) {
    V value;
    std::memcpy(&value, from, sizeof value);  // from wherever it lies
    return value;
}

template <typename V>
static inline void store(float* to, V value) {
    std::memcpy(to, &value, sizeof value);
}

// Asks for the TILE_COLUMNS = 2 * LANES elements that begin there.
static inline void prefetch(const float* from) {
#ifdef __GNUC__
    for (int i = 0; i < 2 * LANES; i += 16) __builtin_prefetch(from + i);
#endif
}

// body(V{}, c) for vectors of channels from c on, then for the rest of them one by one
template <typename Body>
static inline void over_channels(std::int64_t channels, Body body) {
    std::int64_t c = 0;
    for (; c + LANES <= channels; c += LANES) body(Vector{}, c);
    for (; LANES > 1 && c < channels; ++c) body(float{}, c);
}

}  // namespace fastgan::FASTGAN_ISA
