// The mapping of the threads of a block to a matrix of rows and channels, and sums over the threads of a channel.
//
// A block covers `lanes` * V channels and THREADS / lanes rows at a time: each thread reads V channels, adjacent
// threads adjacent ones. lanes is a power of two, at most a warp; kernels get its exponent, so that they need no
// division.
#pragma once

#include <cstdint>

#include "launch.h"

namespace fastgan {

constexpr unsigned ALL = 0xffffffffu;  // lanes of a warp

// The exponent of the lanes for `channels`, of which each reads V
inline int bits_for(std::int64_t channels, int V) {
    int bits = 0;
    while (1 << bits < WARP && (V << bits) < channels) ++bits;
    return bits;
}

// A thread's V channels begin at `channel` and are access number `column` of a row. It reads every `step`-th row from
// `row` on. `inside`: whether the channels exist.
struct ThreadTile {
    std::int64_t column, channel;
    int row, step, step_bits;
    bool inside;

    __device__ ThreadTile(unsigned tile, int bits, int V, std::int64_t channels)
        : column((static_cast<std::int64_t>(tile) << bits) + (threadIdx.x & ((1 << bits) - 1))), channel(column * V),
          row(threadIdx.x >> bits), step(THREADS >> bits), step_bits(THREADS_BITS - bits), inside(channel < channels) {}

    // The number of `rows` that it reads
    __device__ std::int64_t count(std::int64_t rows) const {
        return inside && rows > row ? (rows - row + step - 1) >> step_bits : 0;
    }
};

// N sums that are computed together
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

// The value, a structure of float32, of the lane `distance` above
template <typename Value>
__device__ inline Value shuffle_down(Value value, int distance) {
    float* fields = reinterpret_cast<float*>(&value);
#pragma unroll
    for (unsigned i = 0; i < sizeof(Value) / sizeof(float); ++i) {
        fields[i] = __shfl_down_sync(ALL, fields[i], distance);
    }
    return value;
}

// The values of all rows of the tile, merged in a fixed order, for the channel that `merged_channel` returns. All
// threads of a block must call it.
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
    __syncthreads();  // the next call writes to the memory that this one reads
    return total;
}

// Whether this block is the last of `count` blocks to call it with a ticket, which is 0 before and after. The last block
// then sees what the others have written, by `__ldcg`. All threads of a block must call it.
__device__ inline bool last_arrival(unsigned* ticket, unsigned count) {
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicInc(ticket, count - 1) == count - 1;
        __threadfence();
    }
    __syncthreads();
    return last;
}

// After `merge_rows`: the channel of this thread, or `channels` if it has none
__device__ inline std::int64_t merged_channel(unsigned tile, int bits, int V, std::int64_t channels) {
    const int thread = threadIdx.x;
    const std::int64_t column = (static_cast<std::int64_t>(tile) << bits) + (thread & ((1 << bits) - 1));
    const std::int64_t channel = column * V + (thread >> bits);
    return thread < V << bits && channel < channels ? channel : channels;
}

}  // namespace fastgan
