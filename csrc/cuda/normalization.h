// The coefficients of a normalization for the channels of a thread, and the choice of a kernel by activation.
#pragma once

#include <type_traits>

#include "elements.h"
#include "tile.h"

namespace fastgan {

// The coefficients for the V channels of a thread
template <int V>
struct Coefficients {
    float mean[V] = {}, rstd[V] = {}, gamma[V] = {}, beta[V] = {};

    __device__ Coefficients(const Normalization& from, std::int64_t channels, const ThreadTile& tile) {
        if (!tile.inside) return;
        load_floats(from.stats + blockIdx.y * channels, tile.column, mean);
        load_floats(from.stats + (gridDim.y + blockIdx.y) * channels, tile.column, rstd);
        load_floats(from.gamma, tile.column, gamma);
        load_floats(from.beta, tile.column, beta);
    }

    __device__ float xhat(float y, int v) const { return (y - mean[v]) * rstd[v]; }
    __device__ float z(float xhat, int v) const { return gamma[v] * xhat + beta[v]; }
};

template <Activation kind>
using Kind = std::integral_constant<Activation, kind>;

// Calls f(Type<T>, V as a constant, Kind<activation>, bits), by `with_elements` for all addresses that a kernel gets
template <typename F>
void with_kernel(const Shape& shape, const Normalization& normalization, std::initializer_list<const void*> addresses,
                 F f) {
    bool aligned = is_aligned(addresses) && is_aligned({normalization.stats, normalization.gamma, normalization.beta});
    with_elements(shape, aligned, [&](auto type, auto v) {
        const int bits = bits_for(shape.channels, v);
        switch (normalization.activation) {
            case Activation::none: return f(type, v, Kind<Activation::none>(), bits);
            case Activation::relu: return f(type, v, Kind<Activation::relu>(), bits);
            case Activation::leaky_relu: return f(type, v, Kind<Activation::leaky_relu>(), bits);
            case Activation::tanh: return f(type, v, Kind<Activation::tanh>(), bits);
        }
    });
}

}  // namespace fastgan
