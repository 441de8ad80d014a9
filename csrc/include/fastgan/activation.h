// What follows a batch normalisation, and its derivative. The kind is a template argument: no branch in a loop.
#pragma once

#include <cmath>

#include "fastgan/inline.h"

namespace fastgan {

enum class Activation { none, relu, leaky_relu, tanh };

template <Activation kind>
FASTGAN_INLINE float activate(float z, float slope) {
    // NaN passes through relu, as in PyTorch: comparisons with it are false
    if constexpr (kind == Activation::relu) return z <= 0.0f ? 0.0f : z;
    if constexpr (kind == Activation::leaky_relu) return z > 0.0f ? z : z * slope;
    if constexpr (kind == Activation::tanh) return tanhf(z);
    return z;
}

// g * act'(z)
template <Activation kind>
FASTGAN_INLINE float through_activation(float g, float z, float slope) {
    if constexpr (kind == Activation::relu) return z <= 0.0f ? 0.0f : g;
    if constexpr (kind == Activation::leaky_relu) return z > 0.0f ? g : g * slope;
    if constexpr (kind == Activation::tanh) {
        const float a = tanhf(z);
        return g * (1.0f - a * a);
    }
    return g;
}

}  // namespace fastgan
