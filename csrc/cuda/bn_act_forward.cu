// a = act(gamma * (y - mean) * rstd + beta) of y [M, C].
#include "map.h"
#include "normalization.h"

namespace fastgan {
namespace {

template <typename T, int V, Activation kind>
__global__ void __launch_bounds__(THREADS, BLOCKS)
    bn_act_forward_kernel(const T* y, int64_t rows, int64_t channels, int bits,
                          const __grid_constant__ Normalization normalization, T* a) {
    const ThreadTile tile(blockIdx.z, bits, V, channels);
    const Coefficients<V> by(normalization, channels, tile);
    map_rows<V>(tile, rows, channels, {y}, a, [&](const float (&of)[1], int v) {
        return activate<kind>(by.z(by.xhat(of[0], v), v), normalization.slope);
    });
}

}  // namespace

void bn_act_forward(const Shape& shape, const void* y, const Normalization& normalization, void* a, int64_t stream) {
    if (shape.rows == 0) return;
    with_kernel(shape, normalization, {y, a}, [&](auto type, auto v, auto kind, int bits) {
        using T = typename decltype(type)::type;
        launch("bn_act_forward", bn_act_forward_kernel<T, v(), kind()>, map_grid(shape, v, bits), stream,
               static_cast<const T*>(y), shape.group_rows(), shape.channels, bits, normalization, static_cast<T*>(a));
    });
}

}  // namespace fastgan
