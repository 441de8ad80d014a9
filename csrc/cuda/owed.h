// What is owed to x, as a thread reads it: the vectors of a normalisation for its channels, and the kind of activation.
#pragma once

#include <type_traits>

#include "fastgan/activation.h"
#include "fastgan/kernels.h"
#include "fastgan/norm.h"
#include "tile.h"

namespace fastgan::cuda {

// Where the vectors of a normalisation stand; mean null: there is none.
struct Vectors {
    const float *mean, *rstd, *gamma, *beta;
    std::int64_t statistic_stride, gamma_stride;  // from group to group, 0 where all share one
};

inline Vectors vectors(const Owed& owed, std::int64_t channels) {
    if (owed.statistics == nullptr) return {};
    return {owed.statistics, owed.statistics + owed.statistic_groups * channels, owed.gamma, owed.beta,
            owed.statistic_groups > 1 ? channels : 0, owed.gamma_groups > 1 ? channels : 0};
}

// A thread's share of them; without a normalisation the one that changes nothing.
template <int V>
struct Norm {
    float mean[V], rstd[V], gamma[V], beta[V];

    __device__ Norm(const Vectors& of, std::int64_t group, const Place& place) {
        const std::int64_t first = group * of.statistic_stride + place.channel;
        const std::int64_t last = group * of.gamma_stride + place.channel;
        const bool known = of.mean != nullptr && place.inside;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            mean[v] = known ? of.mean[first + v] : 0.0f;
            rstd[v] = known ? of.rstd[first + v] : 1.0f;
            gamma[v] = known ? of.gamma[last + v] : 1.0f;
            beta[v] = known ? of.beta[last + v] : 0.0f;
        }
    }

    // z of the thread's element v
    __device__ float operator()(float x, int v) const { return normalise(x, mean[v], rstd[v], gamma[v], beta[v]); }
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
