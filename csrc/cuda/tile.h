// How a block lies on a matrix of rows and channels, and how its threads add up what they have of a channel.
//
// A block covers `lanes` * V channels and THREADS / lanes rows at a time: neighbouring threads read neighbouring
// channels, V of them each. lanes is a power of two, at most a warp; kernels are given its exponent and divide nothing.
#pragma once

#include <cstdint>
#include <cstring>

#include "launch.h"

namespace fastgan::cuda {

constexpr unsigned ALL = 0xffffffffu;  // lanes of a warp

// The exponent of the lanes that `channels` take, V each.
inline int bits_for(std::int64_t channels, int V) {
    int bits = 0;
    while (1 << bits < WARP && (V << bits) < channels) ++bits;
    return bits;
}

inline std::int64_t ceiling(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Of a thread: its V channels, which are those from `channel` on and access number `column` of a row; the first row
// that it reads, and how many rows on the next; `inside`: whether the channels exist.
struct Place {
    std::int64_t column, channel;
    int row, step, step_bits;
    bool inside;

    __device__ Place(unsigned tile, int bits, int V, std::int64_t channels)
        : column((static_cast<std::int64_t>(tile) << bits) + (threadIdx.x & ((1 << bits) - 1))), channel(column * V),
          row(threadIdx.x >> bits), step(THREADS >> bits), step_bits(THREADS_BITS - bits), inside(channel < channels) {}

    // How many of `rows` it reads.
    __device__ std::int64_t count(std::int64_t rows) const {
        return inside && rows > row ? (rows - row + step - 1) >> step_bits : 0;
    }
};

// A value of several float32, as what shared memory and shuffles take.
template <typename Value>
struct Fields {
    float field[sizeof(Value) / sizeof(float)];
};

template <typename Value>
__device__ inline Fields<Value> apart(const Value& value) {
    Fields<Value> fields;
    memcpy(&fields, &value, sizeof(Value));
    return fields;
}

template <typename Value>
__device__ inline Value together(const Fields<Value>& fields) {
    Value value;
    memcpy(static_cast<void*>(&value), &fields, sizeof(Value));
    return value;
}

template <typename Value>
__device__ inline Value of_lane_above(const Value& value, int distance) {
    Fields<Value> fields = apart(value);
#pragma unroll
    for (float& field : fields.field) field = __shfl_down_sync(ALL, field, distance);
    return together(fields);
}

// The merged values of all rows of the tile, in a fixed order, for the channel that `merged_channel` names. All threads
// of a block must come here.
template <int V, typename Value>
__device__ inline Value merge_rows(Value (&value)[V], int bits) {
    __shared__ Fields<Value> kept[WARPS][V][WARP];
    for (int distance = WARP / 2; distance >= 1 << bits; distance /= 2) {
#pragma unroll
        for (int v = 0; v < V; ++v) value[v] = merge(value[v], of_lane_above(value[v], distance));
    }
    const int thread = threadIdx.x, warp = thread / WARP, lane = thread % WARP;
    if (lane < 1 << bits) {
#pragma unroll
        for (int v = 0; v < V; ++v) kept[warp][v][lane] = apart(value[v]);
    }
    __syncthreads();
    Value total;
    if (thread < V << bits) {
        for (int other = 0; other < WARPS; ++other) {
            total = merge(total, together(kept[other][thread >> bits][thread & ((1 << bits) - 1)]));
        }
    }
    __syncthreads();  // the next call writes where this one has read
    return total;
}

// After `merge_rows`: the channel that this thread has, or `channels` where it has none.
__device__ inline std::int64_t merged_channel(unsigned tile, int bits, int V, std::int64_t channels) {
    const int thread = threadIdx.x;
    const std::int64_t column = (static_cast<std::int64_t>(tile) << bits) + (thread & ((1 << bits) - 1));
    const std::int64_t channel = column * V + (thread >> bits);
    return thread < V << bits && channel < channels ? channel : channels;
}

struct Sum {
    float of = 0.0f;
};

__device__ inline Sum merge(Sum a, Sum b) { return {a.of + b.of}; }

// Two sums that are taken together.
struct Sums {
    float first = 0.0f, second = 0.0f;
};

__device__ inline Sums merge(Sums a, Sums b) { return {a.first + b.first, a.second + b.second}; }

}  // namespace fastgan::cuda
