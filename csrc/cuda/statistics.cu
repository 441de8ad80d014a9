// Mean and variance of each channel of y [M, C], and the update of running statistics, in one launch. Each block computes
// those of a part of the rows, by Welford's updates in each thread and Chan's merge across threads; the last block of
// some channels merges the parts. The order is fixed, so that results repeat bit for bit. Chan, Golub, LeVeque (1979),
// "Updating formulae and a pairwise algorithm for computing sample variances".
#include <algorithm>

#include "elements.h"
#include "tile.h"

namespace fastgan {
namespace {

constexpr int64_t PART = 1 << 15;    // elements of a part: about sixteen accesses of each thread
constexpr int64_t MAX_PARTS = 1024;  // for the last block

struct Moments {
    float count, mean, m2;  // m2: sum of (y - mean)^2
};

__device__ inline Moments merge(Moments a, Moments b) {
    const float count = a.count + b.count;
    if (count == 0.0f) return a;
    const float delta = b.mean - a.mean, share = b.count / count;
    return {count, a.mean + delta * share, a.m2 + b.m2 + delta * delta * a.count * share};
}

__device__ void update(const RunningStats& running, int64_t channel, int64_t group, Moments of) {
    const float factor = running.momentum < 0.0f ? 1.0f / static_cast<float>(*running.num_batches_tracked + group + 1)
                                                 : running.momentum;
    const float unbiased = of.m2 / fmaxf(of.count - 1.0f, 1.0f);
    running.mean[channel] = (1.0f - factor) * running.mean[channel] + factor * of.mean;
    running.var[channel] = (1.0f - factor) * running.var[channel] + factor * unbiased;
}

// grid (parts, groups, tiles of channels)
template <typename T, int V>
__global__ void __launch_bounds__(THREADS, BLOCKS)
    measure_kernel(const T* __restrict__ y,     // [groups * rows, channels]
                   int64_t rows, int64_t each,  // rows of a group; each: of a part
                   int64_t channels, int bits, float eps, const __grid_constant__ RunningStats running,
                   float* partials,   // [3, groups, parts, channels]
                   unsigned* tickets,  // one for each tile of channels, and one
                   float* stats) {    // [2, groups, channels]
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
    const int64_t size = static_cast<int64_t>(gridDim.y) * gridDim.x * channels;
    if (channel < channels) {
        float* at = partials + (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * channels + channel;
        at[0] = total.count;
        at[size] = total.mean;
        at[2 * size] = total.m2;
    }
    if (!last_arrival(tickets + blockIdx.z, gridDim.x * gridDim.y)) return;
    for (int64_t group = 0; group < gridDim.y; ++group) {
        Moments parts[V] = {};
        for (int64_t part = tile.row; tile.inside && part < gridDim.x; part += tile.step) {
            const float* at = partials + (group * gridDim.x + part) * channels + tile.channel;
#pragma unroll
            for (int v = 0; v < V; ++v) {
                parts[v] = merge(parts[v], {__ldcg(at + v), __ldcg(at + size + v), __ldcg(at + 2 * size + v)});
            }
        }
        const Moments of_group = merge_rows(parts, bits);
        if (channel < channels) {
            const float var = of_group.m2 / fmaxf(of_group.count, 1.0f);
            stats[group * channels + channel] = of_group.mean;
            stats[(gridDim.y + group) * channels + channel] = eps < 0.0f ? var : 1.0f / sqrtf(var + eps);
            if (running.mean != nullptr) update(running, channel, group, of_group);
        }
    }
    // the last of the last blocks, because all of them read the count
    if (running.num_batches_tracked != nullptr && last_arrival(tickets + gridDim.z, gridDim.z) && threadIdx.x == 0) {
        *running.num_batches_tracked += gridDim.y;
    }
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
               eps, running, workspace.partials, workspace.tickets, stats);
    });
}

}  // namespace fastgan
