// A normalization as a thread reads it: the vectors for its channels; and the kind of activation.
#pragma once

#include <type_traits>

#include "elements.h"
#include "fastgan/activation.h"
#include "tile.h"

namespace fastgan::cuda {

// Of a thread's V channels; without statistics the normalization that changes nothing.
template <int V>
struct Coefficients {
    float mean[V], rstd[V], gamma[V], beta[V];

    __device__ Coefficients(const Normalization& from, std::int64_t channels, const Place& place) {
        fill(mean, 0.0f);
        fill(rstd, 1.0f);
        fill(gamma, 1.0f);
        fill(beta, 0.0f);
        if (from.stats == nullptr || !place.inside) return;
        load_floats(from.stats + blockIdx.y * channels, place.column, mean);
        load_floats(from.stats + (gridDim.y + blockIdx.y) * channels, place.column, rstd);
        load_floats(from.gamma, place.column, gamma);
        load_floats(from.beta, place.column, beta);
    }

    __device__ float xhat(float y, int v) const { return (y - mean[v]) * rstd[v]; }
    __device__ float z(float xhat, int v) const { return gamma[v] * xhat + beta[v]; }
};

template <Activation kind>
using Kind = std::integral_constant<Activation, kind>;

// f(Kind<activation>)
template <typename F>
void with_activation(Activation activation, F f) {
    switch (activation) {
        case Activation::none: return f(Kind<Activation::none>());
        case Activation::relu: return f(Kind<Activation::relu>());
        case Activation::leaky_relu: return f(Kind<Activation::leaky_relu>());
        case Activation::tanh: return f(Kind<Activation::tanh>());
    }
}

}  // namespace fastgan::cuda
