// The loop of elementwise kernels.
#pragma once

#include "elements.h"
#include "tile.h"

namespace fastgan {

constexpr int DEEP = 8;  // rows of each thread

// grid (parts of a group's rows, groups, tiles of channels)
inline Grid map_grid(const Shape& shape, int V, int bits) {
    return {ceil_div(shape.group_rows(), (THREADS >> bits) * DEEP), shape.groups, ceil_div(shape.channels, V << bits)};
}

// to = f(elements of `from`, index among the thread's channels) for the rows of a thread; a group has `rows`. `to` may
// be one of `from`. Four loads precede the first store, because the compiler would not move loads before a store.
template <int V, int N, typename T, typename F>
__device__ inline void map_rows(const ThreadTile& tile, std::int64_t rows, std::int64_t channels,
                                const T* const (&from)[N], T* to, F f) {
    constexpr int AHEAD = 4 / N;
    const std::int64_t columns = channels / V, begin = static_cast<std::int64_t>(blockIdx.x) * DEEP * tile.step;
    const int count = min(tile.count(rows - begin), static_cast<std::int64_t>(DEEP));
    const std::int64_t first = (blockIdx.y * rows + begin + tile.row) * columns + tile.column;
    const std::int64_t step = tile.step * columns;
#pragma unroll 1
    for (int i = 0; i < count; i += AHEAD) {
        float value[AHEAD][N][V];
#pragma unroll
        for (int row = 0; row < AHEAD; ++row) {
#pragma unroll
            for (int n = 0; n < N; ++n) {
                if (i + row < count) load<V>(from[n], first + (i + row) * step, value[row][n]);
            }
        }
#pragma unroll
        for (int row = 0; row < AHEAD; ++row) {
            if (i + row >= count) return;
            float result[V];
#pragma unroll
            for (int v = 0; v < V; ++v) {
                float element[N];
#pragma unroll
                for (int n = 0; n < N; ++n) element[n] = value[row][n][v];
                result[v] = f(element, v);
            }
            store<V>(to, first + (i + row) * step, result);
        }
    }
}

}  // namespace fastgan
