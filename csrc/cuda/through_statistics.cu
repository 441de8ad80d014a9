// What flows into y through its statistics, added to the gradient of y.
#include "elements.h"
#include "fastgan/norm.h"
#include "kernels.h"
#include "tile.h"

namespace fastgan::cuda {
namespace {

constexpr int DEEP = 8;  // rows of each thread

// grid (parts of the rows, groups, tiles of channels)
template <typename T, int V>
__global__ void __launch_bounds__(THREADS, BLOCKS) through_statistics_kernel(
    const T* __restrict__ gy, const T* __restrict__ y, int64_t rows, int64_t channels, int bits,
    const float* __restrict__ gstatistics, const float* __restrict__ statistics,  // [2, groups, channels] each
    bool spread_is_rstd, T* __restrict__ g) {
    const Place place(blockIdx.z, bits, V, channels);
    if (!place.inside) return;
    ThroughStatistics by[V];
    const int64_t mean = blockIdx.y * channels + place.channel, spread = mean + gridDim.y * channels;
    const float inverse_count = 1.0f / static_cast<float>(rows);
#pragma unroll
    for (int v = 0; v < V; ++v) {
        by[v] = spread_is_rstd ? through_rstd(gstatistics[mean + v], gstatistics[spread + v], statistics[mean + v],
                                              statistics[spread + v], inverse_count)
                               : through_var(gstatistics[mean + v], gstatistics[spread + v], statistics[mean + v],
                                             inverse_count);
    }
    const int64_t columns = channels / V, begin = static_cast<int64_t>(blockIdx.x) * DEEP * place.step;
    const int64_t many = min(place.count(rows - begin), static_cast<int64_t>(DEEP));
    const int64_t first = (blockIdx.y * rows + begin + place.row) * columns + place.column;
#pragma unroll 4
    for (int64_t i = 0; i < many; ++i) {
        const int64_t index = first + i * place.step * columns;
        float gradient[V], value[V];
        load<V>(gy, index, gradient);
        load<V>(y, index, value);
#pragma unroll
        for (int v = 0; v < V; ++v) gradient[v] = fastgan::through_statistics(gradient[v], value[v], by[v]);
        store<V>(g, index, gradient);
    }
}

}  // namespace

void through_statistics(const Shape& shape, const void* gy, const void* y, const float* gstatistics,
                        const float* statistics, bool spread_is_rstd, void* g, int64_t queue) {
    if (shape.rows == 0) return;
    with_elements(shape, {gy, y, g}, [&](auto type, auto v) {
        using T = typename decltype(type)::type;
        constexpr int V = v;
        const int bits = bits_for(shape.channels, V);
        launch("through_statistics", through_statistics_kernel<T, V>,
               {ceiling(shape.group_rows(), (THREADS >> bits) * DEEP), shape.groups,
                ceiling(shape.channels, V << bits)},
               queue, static_cast<const T*>(gy), static_cast<const T*>(y), shape.group_rows(), shape.channels, bits,
               gstatistics, statistics, spread_is_rstd, static_cast<T*>(g));
    });
}

}  // namespace fastgan::cuda
