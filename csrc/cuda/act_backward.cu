// g = ga * act'(z) from a = act(z).
#include "fastgan/activation.h"
#include "kernels.h"
#include "map.h"
#include "normalization.h"

namespace fastgan::cuda {
namespace {

template <typename T, int V, Activation kind>
__global__ void __launch_bounds__(THREADS, BLOCKS) act_backward_kernel(const T* ga, const T* a, int64_t rows,
                                                                       int64_t channels, int bits, float slope, T* g) {
    const Place place(blockIdx.z, bits, V, channels);
    map_rows<V>(place, rows, channels, {ga, a}, g, [&](const float(&of)[2], int) {
        return activation_backward<kind>(of[0], of[1], slope);
    });
}

}  // namespace

void act_backward(const Shape& given, const void* ga, const void* a, Activation activation, float slope, void* g,
                  int64_t queue) {
    if (given.rows == 0) return;
    const Shape shape = flat(given);
    with_elements(shape, {ga, a, g}, [&](auto type, auto v) {
        with_activation(activation, [&](auto kind) {
            using T = typename decltype(type)::type;
            constexpr int V = v;
            const int bits = bits_for(shape.channels, V);
            launch("act_backward", act_backward_kernel<T, V, kind()>, map_grid(shape, V, bits), queue,
                   static_cast<const T*>(ga), static_cast<const T*>(a), shape.group_rows(), shape.channels, bits, slope,
                   static_cast<T*>(g));
        });
    });
}

}  // namespace fastgan::cuda
