// Mean and variance of each channel of y [M, C], in two launches. The first computes those of parts of the rows, by
// Welford's updates in each thread and Chan's merge across threads; the second merges the parts. The order is fixed, so
// that results repeat bit for bit. Chan, Golub, LeVeque (1979), "Updating formulae and a pairwise algorithm for
// computing sample variances".
#include <algorithm>

#include "elements.h"
#include "tile.h"

namespace fastgan {
namespace {

constexpr int64_t PART = 1 << 15;    // elements of a part: about sixteen accesses of each thread
constexpr int64_t MAX_PARTS = 1024;  // for the second launch
constexpr int BITS = 3;              // 2^3 channels per block of the second launch: 32 bytes, one memory access

struct Moments {
    float count, mean, m2;  // m2: sum of (y - mean)^2
};

__device__ inline Moments merge(Moments a, Moments b) {
    const float count = a.count + b.count;
    if (count == 0.0f) return a;
    const float delta = b.mean - a.mean, share = b.count / count;
    return {count, a.mean + delta * share, a.m2 + b.m2 + delta * delta * a.count * share};
}

// grid (parts, groups, tiles of channels)
template <typename T, int V>
__global__ void __launch_bounds__(THREADS, BLOCKS)
    measure_kernel(const T* __restrict__ y,     // [groups * rows, channels]
                   int64_t rows, int64_t each,  // rows of a group; each: of a part
                   int64_t channels, int bits, float* __restrict__ partials) {
    const ThreadTile tile(blockIdx.z, bits, V, channels);
    const int64_t columns = channels / V, begin = blockIdx.x * each, steps = tile.count(min(each, rows - begin));
    const int64_t first = (blockIdx.y * rows + begin + tile.row) * columns + tile.column;
    float count = 0.0f, mean[V] = {}, m2[V] = {};
#pragma unroll 4
    for (int64_t i = 0; i < steps; ++i) {
        float value[V];
        load<V>(y, first + i * tile.step * columns, value);
        count += 1.0f;
        const float share = __fdividef(1.0f, count);  // an error of 2 units, which the next rows correct
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const float delta = value[v] - mean[v];
            mean[v] += delta * share;
            m2[v] += delta * (value[v] - mean[v]);
        }
    }
    Moments moments[V];
#pragma unroll
    for (int v = 0; v < V; ++v) moments[v] = {count, mean[v], m2[v]};
    const Moments total = merge_rows(moments, bits);
    const int64_t channel = merged_channel(blockIdx.z, bits, V, channels);
    if (channel < channels) {
        float* at = partials + (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * channels + channel;
        const int64_t size = static_cast<int64_t>(gridDim.y) * gridDim.x * channels;
        at[0] = total.count;
        at[size] = total.mean;
        at[2 * size] = total.m2;
    }
}

__device__ void update(const RunningStats& running, int64_t channel, int64_t group, Moments of) {
    const float factor = running.momentum < 0.0f ? 1.0f / static_cast<float>(*running.num_batches_tracked + group + 1)
                                                 : running.momentum;
    const float unbiased = of.m2 / fmaxf(of.count - 1.0f, 1.0f);
    running.mean[channel] = (1.0f - factor) * running.mean[channel] + factor * of.mean;
    running.var[channel] = (1.0f - factor) * running.var[channel] + factor * unbiased;
}

__global__ void __launch_bounds__(THREADS, BLOCKS)
    merge_parts_kernel(const float* __restrict__ partials,  // [3, groups, parts, channels]
                       int64_t channels, int64_t groups, int64_t parts, float eps,
                       const __grid_constant__ RunningStats running,
                       float* __restrict__ stats) {  // [2, groups, channels]
    const ThreadTile tile(blockIdx.x, BITS, 1, channels);
    const int64_t size = groups * parts * channels;
    for (int64_t group = 0; group < groups; ++group) {
        Moments moments[1] = {};
        if (tile.inside) {
            const float* at = partials + group * parts * channels + tile.channel;
            for (int64_t part = tile.row; part < parts; part += tile.step) {
                const float* of = at + part * channels;
                moments[0] = merge(moments[0], {of[0], of[size], of[2 * size]});
            }
        }
        const Moments total = merge_rows(moments, BITS);
        if (tile.row == 0 && tile.inside) {
            const float var = total.m2 / fmaxf(total.count, 1.0f);
            float* at = stats + group * channels + tile.channel;
            at[0] = total.mean;
            at[groups * channels] = eps < 0.0f ? var : 1.0f / sqrtf(var + eps);
            if (running.mean != nullptr) update(running, tile.channel, group, total);
        }
    }
}

// A separate launch, because every block of the previous one reads the count.
__global__ void count_batches_kernel(int64_t* num_batches_tracked, int64_t groups) {
    if (threadIdx.x == 0) *num_batches_tracked += groups;
}

}  // namespace

int64_t parts_of(int64_t group_rows, int64_t channels) {
    return std::max<int64_t>(1, std::min({ceil_div(group_rows * channels, PART), group_rows, MAX_PARTS}));
}

void batch_stats(const Shape& shape, const void* y, float eps, const RunningStats& running, const Workspace& workspace,
                 float* stats, int64_t stream) {
    const int64_t parts = workspace.parts;
    with_elements(shape, is_aligned({y}), [&](auto type, auto v) {
        using T = typename decltype(type)::type;
        const int bits = bits_for(shape.channels, v);
        launch("measure", measure_kernel<T, v()>, {parts, shape.groups, ceil_div(shape.channels, v << bits)}, stream,
               static_cast<const T*>(y), shape.group_rows(), ceil_div(shape.group_rows(), parts), shape.channels, bits,
               workspace.partials);
    });
    launch("merge_parts", merge_parts_kernel, {ceil_div(shape.channels, 1 << BITS)}, stream, workspace.partials,
           shape.channels, shape.groups, parts, eps, running, stats);
    if (running.num_batches_tracked != nullptr) {
        launch("count_batches", count_batches_kernel, {1}, stream, running.num_batches_tracked, shape.groups);
    }
}

}  // namespace fastgan
