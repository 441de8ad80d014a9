// Normalisation and activation written out, and their derivative with the sums for gamma and beta.
#include "elements.h"
#include "kernels.h"
#include "owed.h"
#include "tile.h"

namespace fastgan::cuda {
namespace {

constexpr int BITS = 3;  // 2^3 channels of a block that adds up parts: 32 bytes, a memory access
constexpr int DEEP = 8;  // rows of each thread that only writes

// grid (parts of the rows, groups, tiles of channels)
template <typename T, int V, Activation kind>
__global__ void __launch_bounds__(THREADS, BLOCKS) normalise_activate_kernel(
    const T* __restrict__ x, int64_t rows, int64_t channels, int bits, Vectors of, float slope, T* __restrict__ out) {
    const Place place(blockIdx.z, bits, V, channels);
    const Norm<V> norm(of, blockIdx.y, place);
    const int64_t columns = channels / V, begin = static_cast<int64_t>(blockIdx.x) * DEEP * place.step;
    const int64_t many = min(place.count(rows - begin), static_cast<int64_t>(DEEP));
    const int64_t first = (blockIdx.y * rows + begin + place.row) * columns + place.column;
#pragma unroll 4
    for (int64_t i = 0; i < many; ++i) {
        const int64_t index = first + i * place.step * columns;
        float value[V];
        load<V>(x, index, value);
#pragma unroll
        for (int v = 0; v < V; ++v) value[v] = activate<kind>(norm(value[v], v), slope);
        store<V>(out, index, value);
    }
}

// grid (parts, groups, tiles of channels)
template <typename T, int V, Activation kind>
__global__ void __launch_bounds__(THREADS, BLOCKS) normalise_activate_backward_kernel(
    const T* gout, const T* __restrict__ x, int64_t rows, int64_t each,  // of a group, of a part
    int64_t channels, int bits, Vectors of, float slope, T* gx, float* __restrict__ partials) {
    const Place place(blockIdx.z, bits, V, channels);
    const Norm<V> norm(of, blockIdx.y, place);
    const int64_t columns = channels / V, begin = blockIdx.x * each, many = place.count(min(each, rows - begin));
    const int64_t first = (blockIdx.y * rows + begin + place.row) * columns + place.column;
    Sums sums[V];
#pragma unroll 2
    for (int64_t i = 0; i < many; ++i) {
        const int64_t index = first + i * place.step * columns;
        float value[V], g[V];
        load<V>(x, index, value);
        load<V>(gout, index, g);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const float z = norm(value[v], v);
            const float gz = through_activation<kind>(g[v], z, slope);
            sums[v] = merge(sums[v], {gz, gz * standardise(value[v], norm.mean[v], norm.rstd[v])});
            g[v] = gz * (norm.gamma[v] * norm.rstd[v]);
        }
        store<V>(gx, index, g);
    }
    if (partials == nullptr) return;
    const Sums total = merge_rows(sums, bits);
    const int64_t channel = merged_channel(blockIdx.z, bits, V, channels);
    if (channel < channels) {
        float* at = partials + (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * channels + channel;
        at[0] = total.first;
        at[static_cast<int64_t>(gridDim.y) * gridDim.x * channels] = total.second;
    }
}

// grid (tiles of channels, groups)
__global__ void __launch_bounds__(THREADS, BLOCKS) finish_norm_gradient_kernel(
    const float* __restrict__ partials,  // [2, groups, parts, channels]
    int64_t channels, int64_t parts, Vectors of,
    float* __restrict__ out) {  // [4, groups, channels]
    const Place place(blockIdx.x, BITS, 1, channels);
    const int64_t group = blockIdx.y, groups = gridDim.y;
    Sums sums[1];
    if (place.inside) {
        const float* at = partials + group * parts * channels + place.channel;
        for (int64_t part = place.row; part < parts; part += place.step) {
            sums[0] = merge(sums[0], {at[part * channels], at[(groups * parts + part) * channels]});
        }
    }
    const Sums total = merge_rows(sums, BITS);
    if (place.row == 0 && place.inside) {
        const float rstd = of.rstd[group * of.statistic_stride + place.channel];
        const float gamma = of.gamma[group * of.gamma_stride + place.channel];
        const NormGradient gradient = norm_gradient(total.first, total.second, rstd, gamma);
        float* at = out + group * channels + place.channel;
        at[0] = gradient.mean;
        at[groups * channels] = gradient.rstd;
        at[2 * groups * channels] = gradient.gamma;
        at[3 * groups * channels] = gradient.beta;
    }
}

}  // namespace

void normalise_activate(const Shape& shape, const void* x, const Owed& owed, void* out, int64_t queue) {
    if (shape.rows == 0) return;
    with_elements(shape, {x, out}, [&](auto type, auto v) {
        with_activation(owed.activation, [&](auto kind) {
            using T = typename decltype(type)::type;
            constexpr int V = v;
            const int bits = bits_for(shape.channels, V);
            launch("normalise_activate", normalise_activate_kernel<T, V, kind()>,
                   {ceiling(shape.group_rows(), (THREADS >> bits) * DEEP), shape.groups,
                    ceiling(shape.channels, V << bits)},
                   queue, static_cast<const T*>(x), shape.group_rows(), shape.channels, bits,
                   vectors(owed, shape.channels), owed.slope, static_cast<T*>(out));
        });
    });
}

void normalise_activate_backward(const Shape& shape, const void* gout, const void* x, const Owed& owed, int64_t parts,
                                 void* gx, float* partials, int64_t queue) {
    with_elements(shape, {gout, x, gx}, [&](auto type, auto v) {
        with_activation(owed.activation, [&](auto kind) {
            using T = typename decltype(type)::type;
            constexpr int V = v;
            const int bits = bits_for(shape.channels, V);
            launch("normalise_activate_backward", normalise_activate_backward_kernel<T, V, kind()>,
                   {parts, shape.groups, ceiling(shape.channels, V << bits)}, queue, static_cast<const T*>(gout),
                   static_cast<const T*>(x), shape.group_rows(), ceiling(shape.group_rows(), parts), shape.channels,
                   bits, vectors(owed, shape.channels), owed.slope, static_cast<T*>(gx), partials);
        });
    });
}

void finish_norm_gradient(const float* partials, int64_t channels, int64_t groups, int64_t parts, const Owed& owed,
                          float* out, int64_t queue) {
    launch("finish_norm_gradient", finish_norm_gradient_kernel, {ceiling(channels, 1 << BITS), groups}, queue, partials,
           channels, parts, vectors(owed, channels), out);
}

}  // namespace fastgan::cuda
