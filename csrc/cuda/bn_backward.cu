// The backward of batch normalization and its activation, with M elements of a channel in each group:
//
//     sums    sum gz and sum gz * xhat,   gz = ga * act'(z),  z = gamma * xhat + beta,  xhat = (y - mean) * rstd
//     apply   g = gamma * rstd * (gz - (sum gz + xhat * sum gz * xhat) / M)
//
// One launch computes the sums of parts of the rows, and in the last block of some channels the sums of these, in a fixed
// order, so that results repeat bit for bit.
#include "map.h"
#include "normalization.h"

namespace fastgan {
namespace {

// grid (parts, groups, tiles of channels)
template <typename T, int V, Activation kind>
__global__ void __launch_bounds__(THREADS, BLOCKS)
    bn_backward_sums_kernel(const T* __restrict__ ga, const T* __restrict__ y, int64_t rows,
                            int64_t each,  // rows of a group; each: of a part
                            int64_t channels, int bits, const __grid_constant__ Normalization normalization,
                            float* partials,  // [2, groups, parts, channels]
                            unsigned* tickets,  // one for each tile of channels
                            float* sums, float* totals) {  // [2, groups, channels], [2, channels] or null
    const ThreadTile tile(blockIdx.z, bits, V, channels);
    const Coefficients<V> by(normalization, channels, tile);
    const int64_t columns = channels / V, begin = blockIdx.x * each, count = tile.count(min(each, rows - begin));
    const int64_t first = (blockIdx.y * rows + begin + tile.row) * columns + tile.column;
    Sums<2> of[V] = {};
#pragma unroll 2
    for (int64_t i = 0; i < count; ++i) {
        const int64_t index = first + i * tile.step * columns;
        float gradient[V], value[V];
        load<V>(ga, index, gradient);
        load<V>(y, index, value);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const float xhat = by.xhat(value[v], v);
            const float gz = activation_backward<kind>(gradient[v], by.z(xhat, v), normalization.slope);
            of[v] = merge(of[v], {gz, gz * xhat});
        }
    }
    const Sums<2> total = merge_rows(of, bits);
    const int64_t channel = merged_channel(blockIdx.z, bits, V, channels);
    const int64_t size = static_cast<int64_t>(gridDim.y) * gridDim.x * channels;
    if (channel < channels) {
        float* at = partials + (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * channels + channel;
        at[0] = total.sum[0];
        at[size] = total.sum[1];
    }
    if (!last_arrival(tickets + blockIdx.z, gridDim.x * gridDim.y)) return;
    Sums<2> of_all = {};
    for (int64_t group = 0; group < gridDim.y; ++group) {
        Sums<2> parts[V] = {};
        for (int64_t part = tile.row; tile.inside && part < gridDim.x; part += tile.step) {
            const float* at = partials + (group * gridDim.x + part) * channels + tile.channel;
#pragma unroll
            for (int v = 0; v < V; ++v) parts[v] = merge(parts[v], {__ldcg(at + v), __ldcg(at + size + v)});
        }
        const Sums<2> of_group = merge_rows(parts, bits);
        of_all = merge(of_all, of_group);
        if (channel < channels) {
            sums[group * channels + channel] = of_group.sum[0];
            sums[(gridDim.y + group) * channels + channel] = of_group.sum[1];
        }
    }
    if (totals != nullptr && channel < channels) {
        totals[channel] = of_all.sum[0];
        totals[channels + channel] = of_all.sum[1];
    }
}

template <typename T, int V, Activation kind>
__global__ void __launch_bounds__(THREADS, BLOCKS)
    bn_backward_apply_kernel(const T* ga, const T* y, int64_t rows, int64_t channels, int bits,
                             const __grid_constant__ Normalization normalization,
                             const float* __restrict__ sums,  // [2, groups, channels]
                             float inverse_count, T* g) {
    const ThreadTile tile(blockIdx.z, bits, V, channels);
    const Coefficients<V> by(normalization, channels, tile);
    const bool batch_statistics = sums != nullptr;  // running statistics have no gradient, not even NaN
    float gz_mean[V] = {}, gz_xhat_mean[V] = {};
    if (batch_statistics && tile.inside) {
        load_floats(sums + blockIdx.y * channels, tile.column, gz_mean);
        load_floats(sums + (gridDim.y + blockIdx.y) * channels, tile.column, gz_xhat_mean);
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
        gz_mean[v] *= inverse_count;
        gz_xhat_mean[v] *= inverse_count;
    }
    map_rows<V>(tile, rows, channels, {ga, y}, g, [&](const float (&of)[2], int v) {
        const float xhat = by.xhat(of[1], v);
        const float gz = activation_backward<kind>(of[0], by.z(xhat, v), normalization.slope);
        const float through = batch_statistics ? gz_mean[v] + xhat * gz_xhat_mean[v] : 0.0f;
        return by.gamma[v] * by.rstd[v] * (gz - through);
    });
}

}  // namespace

void bn_backward_sums(const Shape& shape, const void* ga, const void* y, const Normalization& normalization,
                      const Workspace& workspace, float* sums, float* totals, int64_t stream) {
    const int64_t parts = workspace.parts;
    with_kernel(shape, normalization, {ga, y}, [&](auto type, auto v, auto kind, int bits) {
        using T = typename decltype(type)::type;
        launch("bn_backward_sums", bn_backward_sums_kernel<T, v(), kind()>,
               {parts, shape.groups, ceil_div(shape.channels, v << bits)}, stream, static_cast<const T*>(ga),
               static_cast<const T*>(y), shape.group_rows(), ceil_div(shape.group_rows(), parts), shape.channels, bits,
               normalization, workspace.partials, workspace.tickets, sums, totals);
    });
}

void bn_backward_apply(const Shape& shape, const void* ga, const void* y, const Normalization& normalization,
                       const float* sums, float inverse_count, void* g, int64_t stream) {
    if (shape.rows == 0) return;
    with_kernel(shape, normalization, {ga, y, g, sums}, [&](auto type, auto v, auto kind, int bits) {
        using T = typename decltype(type)::type;
        launch("bn_backward_apply", bn_backward_apply_kernel<T, v(), kind()>, map_grid(shape, v, bits), stream,
               static_cast<const T*>(ga), static_cast<const T*>(y), shape.group_rows(), shape.channels, bits,
               normalization, sums, inverse_count, static_cast<T*>(g));
    });
}

}  // namespace fastgan
