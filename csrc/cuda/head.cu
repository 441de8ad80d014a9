// The last convolution of a discriminator: its kernel is as large as its image, so that it is a dot product, and its
// gradients are an outer product and a weighted sum. With k = (pixel, channel), and a = what is owed to x, done on load:
//
//     y[n, o]  = bias[o] + sum_k a[n, k] w[o, k]
//     ga[n, k] = sum_o g[n, o] w[o, k]
//     gw[o, k] = sum_n g[n, o] a[n, k]
//
// A convolution for tensor cores would fill one column of a tile of 64 or more. Here each reads or writes the image once,
// 16 bytes at a time; sums go through a block in a fixed order, and no block needs another's.
#include <algorithm>

#include "elements.h"
#include "kernels.h"
#include "owed.h"
#include "tile.h"

namespace fastgan::cuda {
namespace {

constexpr int MOST_BITS = 3;  // 2^3 accesses side by side in the weighted sum: 128 bytes; images beneath each other
constexpr int DEEP = 2;       // images of each thread that only writes

// grid (images of a group, groups, outputs)
template <typename T, int V, Activation kind>
__global__ void __launch_bounds__(THREADS, BLOCKS) head_forward_kernel(
    const T* __restrict__ x,  // [images, pixels, channels]
    int64_t pixels, int64_t channels, int bits, Vectors of, float slope,
    const float* __restrict__ weight,  // [outputs, pixels, channels]
    const float* __restrict__ bias,    // [outputs] or null
    float* __restrict__ y) {           // [images, outputs]
    const int64_t image = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x, columns = channels / V;
    Sum sum[1];
    for (int64_t tile = 0; tile << bits < columns; ++tile) {
        const Place place(tile, bits, V, channels);
        const Norm<V> norm(of, blockIdx.y, place);
        const int64_t many = place.count(pixels), first = place.row * columns + place.column;
#pragma unroll 2
        for (int64_t i = 0; i < many; ++i) {
            const int64_t index = first + i * place.step * columns;
            float value[V], factor[V];
            load<V>(x, image * pixels * columns + index, value);
            load_floats<V>(weight, blockIdx.z * pixels * columns + index, factor);
#pragma unroll
            for (int v = 0; v < V; ++v) sum[0].of += activate<kind>(norm(value[v], v), slope) * factor[v];
        }
    }
    const Sum total = merge_rows(sum, 0);
    if (threadIdx.x == 0) y[image * gridDim.z + blockIdx.z] = total.of + (bias == nullptr ? 0.0f : bias[blockIdx.z]);
}

// An image as one row of `size` elements. grid (tiles of it, parts of the images)
template <typename T, int V>
__global__ void __launch_bounds__(THREADS, BLOCKS) head_dgrad_kernel(
    const float* __restrict__ g,  // [images, outputs]
    int64_t images, int64_t size, int bits, int outputs,
    const float* __restrict__ weight,  // [outputs, size]
    T* __restrict__ ga) {              // [images, size]
    const Place place(blockIdx.x, bits, V, size);
    const int64_t columns = size / V, begin = static_cast<int64_t>(blockIdx.y) * DEEP * place.step;
    const int64_t many = min(place.count(images - begin), static_cast<int64_t>(DEEP));
#pragma unroll
    for (int64_t i = 0; i < many; ++i) {
        const int64_t image = begin + place.row + i * place.step;
        float value[V] = {};
        for (int o = 0; o < outputs; ++o) {
            float factor[V];
            load_floats<V>(weight, o * columns + place.column, factor);
#pragma unroll
            for (int v = 0; v < V; ++v) value[v] += g[image * outputs + o] * factor[v];
        }
        store<V>(ga, image * columns + place.column, value);
    }
}

// grid (tiles of an image, outputs)
template <typename T, int V, Activation kind>
__global__ void __launch_bounds__(THREADS, BLOCKS) head_wgrad_kernel(
    const T* __restrict__ x,  // [groups, each, size]
    int64_t groups, int64_t each, int64_t size, int64_t channels, int bits, Vectors of, float slope,
    const float* __restrict__ g,     // [groups, each, outputs]
    float* __restrict__ gweight) {  // [outputs, size]
    const Place place(blockIdx.x, bits, V, size);
    Place in_pixel = place;
    in_pixel.channel %= channels;
    Sum sums[V];
    for (int64_t group = 0; group < groups; ++group) {
        const Norm<V> norm(of, group, in_pixel);
        const int64_t many = place.count(each);
#pragma unroll 2
        for (int64_t i = 0; i < many; ++i) {
            const int64_t image = group * each + place.row + i * place.step;
            const float factor = g[image * gridDim.y + blockIdx.y];
            float value[V];
            load<V>(x, image * (size / V) + place.column, value);
#pragma unroll
            for (int v = 0; v < V; ++v) sums[v].of += factor * activate<kind>(norm(value[v], v), slope);
        }
    }
    const Sum total = merge_rows(sums, bits);
    const int64_t at = merged_channel(blockIdx.x, bits, V, size);
    if (at < size) gweight[blockIdx.y * size + at] = total.of;
}

}  // namespace

void head_forward(const Head& head, const void* x, const Owed& owed, const float* weight, const float* bias, float* y,
                  int64_t queue) {
    if (head.images() == 0) return;
    const int64_t channels = head.x.channels;
    with_elements(head.x, {x, weight}, [&](auto type, auto v) {
        with_activation(owed.activation, [&](auto kind) {
            using T = typename decltype(type)::type;
            constexpr int V = v;
            launch("head_forward", head_forward_kernel<T, V, kind()>,
                   {head.group_images(), head.x.groups, head.outputs}, queue, static_cast<const T*>(x), head.pixels,
                   channels, bits_for(channels, V), vectors(owed, channels), owed.slope, weight, bias, y);
        });
    });
}

void head_dgrad(const Head& head, const float* g, const float* weight, void* ga, int64_t queue) {
    if (head.images() == 0) return;
    with_elements(head.x, {weight, ga}, [&](auto type, auto v) {
        using T = typename decltype(type)::type;
        constexpr int V = v;
        const int bits = bits_for(head.size(), V);
        launch("head_dgrad", head_dgrad_kernel<T, V>,
               {ceiling(head.size(), V << bits), ceiling(head.images(), (THREADS >> bits) * DEEP)}, queue, g,
               head.images(), head.size(), bits, head.outputs, weight, static_cast<T*>(ga));
    });
}

void head_wgrad(const Head& head, const void* x, const Owed& owed, const float* g, float* gweight, int64_t queue) {
    const int64_t size = head.size(), channels = head.x.channels;
    with_elements(head.x, {x}, [&](auto type, auto v) {
        with_activation(owed.activation, [&](auto kind) {
            using T = typename decltype(type)::type;
            constexpr int V = v;
            const int bits = std::min(MOST_BITS, bits_for(size, V));
            launch("head_wgrad", head_wgrad_kernel<T, V, kind()>, {ceiling(size, V << bits), head.outputs}, queue,
                   static_cast<const T*>(x), head.x.groups, head.group_images(), size, channels, bits,
                   vectors(owed, channels), owed.slope, g, gweight);
        });
    });
}

}  // namespace fastgan::cuda
