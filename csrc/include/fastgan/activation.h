// What follows a batch normalization, and its derivative. The kind is a template argument: no branch in a loop.
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

// ga * act'(z) from a = act(z), which has the sign of z; tanh' = 1 - tanh^2
template <Activation kind>
FASTGAN_INLINE float activation_backward(float ga, float a, float slope) {
    if constexpr (kind == Activation::relu) return a <= 0.0f ? 0.0f : ga;
    if constexpr (kind == Activation::leaky_relu) return a > 0.0f ? ga : ga * slope;
    if constexpr (kind == Activation::tanh) return ga * (1.0f - a * a);
    return ga;
}

// ga * act'(z) from z
template <Activation kind>
FASTGAN_INLINE float activation_backward_from_input(float ga, float z, float slope) {
    return activation_backward<kind>(ga, kind == Activation::tanh ? tanhf(z) : z, slope);
}

}  // namespace fastgan
