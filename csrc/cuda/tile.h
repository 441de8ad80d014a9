// How the threads of a block are mapped to a matrix of rows and channels, and how they sum what they have of a channel.
//
// A block covers `lanes` * V channels and THREADS / lanes rows at a time: neighbouring threads read neighbouring
// channels, V of them each. lanes is a power of two, at most a warp; kernels are given its exponent and divide nothing.
#pragma once

#include <cstdint>

#include "launch.h"

namespace fastgan {

constexpr unsigned ALL = 0xffffffffu;  // lanes of a warp

// The exponent of the lanes for `channels`, V each
inline int bits_for(std::int64_t channels, int V) {
    int bits = 0;
    while (1 << bits < WARP && (V << bits) < channels) ++bits;
    return bits;
}

// Of a thread: its V channels, which are those from `channel` on and access number `column` of a row; the first row
// that it reads, and how many rows on the next; `inside`: whether the channels exist.
struct ThreadTile {
    std::int64_t column, channel;
    int row, step, step_bits;
    bool inside;

    __device__ ThreadTile(unsigned tile, int bits, int V, std::int64_t channels)
        : column((static_cast<std::int64_t>(tile) << bits) + (threadIdx.x & ((1 << bits) - 1))), channel(column * V),
          row(threadIdx.x >> bits), step(THREADS >> bits), step_bits(THREADS_BITS - bits), inside(channel < channels) {}

    // How many of `rows` it reads
    __device__ std::int64_t count(std::int64_t rows) const {
        return inside && rows > row ? (rows - row + step - 1) >> step_bits : 0;
    }
};

// N sums that are taken together
template <int N>
struct Sums {
    float sum[N];
};

template <int N>
__device__ inline Sums<N> merge(Sums<N> a, const Sums<N>& b) {
#pragma unroll
    for (int n = 0; n < N; ++n) a.sum[n] += b.sum[n];
    return a;
}

// The value, a structure of float32, of the lane that is `distance` above
template <typename Value>
__device__ inline Value shuffle_down(Value value, int distance) {
    float* fields = reinterpret_cast<float*>(&value);
#pragma unroll
    for (unsigned i = 0; i < sizeof(Value) / sizeof(float); ++i) {
        fields[i] = __shfl_down_sync(ALL, fields[i], distance);
    }
    return value;
}

// The merged values of all rows of the tile, in a fixed order, for the channel that `merged_channel` names. All threads
// of a block must call it.
template <int V, typename Value>
__device__ inline Value merge_rows(Value (&value)[V], int bits) {
    __shared__ Value shared[WARPS][V][WARP];
    for (int distance = WARP / 2; distance >= 1 << bits; distance /= 2) {
#pragma unroll
        for (int v = 0; v < V; ++v) value[v] = merge(value[v], shuffle_down(value[v], distance));
    }
    const int thread = threadIdx.x, warp = thread / WARP, lane = thread % WARP;
    if (lane < 1 << bits) {
#pragma unroll
        for (int v = 0; v < V; ++v) shared[warp][v][lane] = value[v];
    }
    __syncthreads();
    Value total{};
    if (thread < V << bits) {
        for (int other = 0; other < WARPS; ++other) {
            total = merge(total, shared[other][thread >> bits][thread & ((1 << bits) - 1)]);
        }
    }
    __syncthreads();  // the next call writes where this one has read
    return total;
}

// After `merge_rows`: the channel that this thread has, or `channels` where it has none
__device__ inline std::int64_t merged_channel(unsigned tile, int bits, int V, std::int64_t channels) {
    const int thread = threadIdx.x;
    const std::int64_t column = (static_cast<std::int64_t>(tile) << bits) + (thread & ((1 << bits) - 1));
    const std::int64_t channel = column * V + (thread >> bits);
    return thread < V << bits && channel < channels ? channel : channels;
}

}  // namespace fastgan
