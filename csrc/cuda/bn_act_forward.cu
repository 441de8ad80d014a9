// a = act(gamma * (y - mean) * rstd + beta), or act(y) without a normalization.
#include "kernels.h"
#include "map.h"
#include "normalization.h"

namespace fastgan::cuda {
namespace {

template <typename T, int V, Activation kind>
__global__ void __launch_bounds__(THREADS, BLOCKS) bn_act_forward_kernel(
    const T* y, int64_t rows, int64_t channels, int bits, const __grid_constant__ Normalization normalization, T* a) {
    const Place place(blockIdx.z, bits, V, channels);
    const Coefficients<V> by(normalization, channels, place);
    map_rows<V>(place, rows, channels, {y}, a, [&](const float(&of)[1], int v) {
        return activate<kind>(by.z(by.xhat(of[0], v), v), normalization.slope);
    });
}

}  // namespace

void bn_act_forward(const Shape& given, const void* y, const Normalization& normalization, void* a, int64_t queue) {
    if (given.rows == 0) return;
    const Shape shape = normalization.stats == nullptr ? flat(given) : given;
    with_elements(shape, {y, a, normalization.stats, normalization.gamma, normalization.beta}, [&](auto type, auto v) {
        with_activation(normalization.activation, [&](auto kind) {
            using T = typename decltype(type)::type;
            constexpr int V = v;
            const int bits = bits_for(shape.channels, V);
            launch("bn_act_forward", bn_act_forward_kernel<T, V, kind()>, map_grid(shape, V, bits), queue,
                   static_cast<const T*>(y), shape.group_rows(), shape.channels, bits, normalization,
                   static_cast<T*>(a));
        });
    });
}

}  // namespace fastgan::cuda
