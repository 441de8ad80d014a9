// Mean and variance of each channel, in two launches: parts of the rows, by Welford's updates in each thread and Chan's
// merge above it, and then their merge. The order is fixed, so that results repeat bit for bit.
#include <algorithm>

#include "elements.h"
#include "fastgan/moments.h"
#include "kernels.h"
#include "tile.h"

namespace fastgan::cuda {
namespace {

constexpr int64_t PART = 1 << 15;     // elements of a part: some sixteen accesses of each thread
constexpr int64_t MOST_PARTS = 1024;  // that the second launch reads
constexpr int BITS = 3;               // 2^3 channels of a block of the second launch: 32 bytes, a memory access

// grid (parts, groups, tiles of channels)
template <typename T, int V>
__global__ void __launch_bounds__(THREADS, BLOCKS) measure_kernel(const T* __restrict__ x,  // [groups * rows, channels]
                                                          int64_t rows, int64_t each,  // of a group, of a part
                                                          int64_t channels, int bits, float* __restrict__ partials) {
    const Place place(blockIdx.z, bits, V, channels);
    const int64_t columns = channels / V, begin = blockIdx.x * each, many = place.count(min(each, rows - begin));
    const int64_t first = (blockIdx.y * rows + begin + place.row) * columns + place.column;
    float count = 0.0f, mean[V] = {}, m2[V] = {};
#pragma unroll 4
    for (int64_t i = 0; i < many; ++i) {
        float value[V];
        load<V>(x, first + i * place.step * columns, value);
        count += 1.0f;
        const float share = __fdividef(1.0f, count);  // to 2 units: it steers the mean, and the next row steers back
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

__global__ void __launch_bounds__(THREADS, BLOCKS) finish_statistics_kernel(
    const float* __restrict__ partials,  // [3, groups, parts, channels]
    int64_t channels, int64_t groups, int64_t parts, float eps, const __grid_constant__ RunningStats running,
    float* __restrict__ out) {  // [2, groups, channels]
    const Place place(blockIdx.x, BITS, 1, channels);
    const int64_t size = groups * parts * channels;
    for (int64_t group = 0; group < groups; ++group) {
        Moments moments[1] = {};
        if (place.inside) {
            const float* at = partials + group * parts * channels + place.channel;
            for (int64_t part = place.row; part < parts; part += place.step) {
                const float* of = at + part * channels;
                moments[0] = merge(moments[0], {of[0], of[size], of[2 * size]});
            }
        }
        const Moments total = merge_rows(moments, BITS);
        if (place.row == 0 && place.inside) {
            const float var = total.m2 / fmaxf(total.count, 1.0f);
            float* at = out + group * channels + place.channel;
            at[0] = total.mean;
            at[groups * channels] = eps < 0.0f ? var : 1.0f / sqrtf(var + eps);
            if (running.mean != nullptr) update(running, place.channel, group, total);
        }
    }
}

// In a launch of its own: every block of the one before reads the count.
__global__ void count_batches_kernel(int64_t* num_batches_tracked, int64_t groups) {
    if (threadIdx.x == 0) *num_batches_tracked += groups;
}

}  // namespace

int64_t parts(int64_t group_rows, int64_t channels) {
    return std::max<int64_t>(1, std::min({ceiling(group_rows * channels, PART), group_rows, MOST_PARTS}));
}

void measure(const Shape& shape, const void* x, int64_t parts, float* partials, int64_t queue) {
    with_elements(shape, {x}, [&](auto type, auto v) {
        using T = typename decltype(type)::type;
        constexpr int V = v;
        const int bits = bits_for(shape.channels, V);
        launch("measure", measure_kernel<T, V>, {parts, shape.groups, ceiling(shape.channels, V << bits)}, queue,
               static_cast<const T*>(x), shape.group_rows(), ceiling(shape.group_rows(), parts),
               shape.channels, bits, partials);
    });
}

void finish_statistics(const float* partials, int64_t channels, int64_t groups, int64_t parts, float eps,
                       const RunningStats& running, float* out, int64_t queue) {
    launch("finish_statistics", finish_statistics_kernel, {ceiling(channels, 1 << BITS)}, queue, partials, channels,
           groups, parts, eps, running, out);
    if (running.num_batches_tracked != nullptr) {
        launch("count_batches", count_batches_kernel, {1}, queue, running.num_batches_tracked, groups);
    }
}

}  // namespace fastgan::cuda
