// The activation after a batch normalization, and its derivative. The kind is a template argument, so that loops have
// no branch.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define FASTGAN_INLINE static __host__ __device__ __forceinline__
#else
#define FASTGAN_INLINE static inline
#endif

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

// ga * act'(z); tanh' = 1 - tanh^2
template <Activation kind>
FASTGAN_INLINE float activation_backward(float ga, float z, float slope) {
    if constexpr (kind == Activation::relu) return z <= 0.0f ? 0.0f : ga;
    if constexpr (kind == Activation::leaky_relu) return z > 0.0f ? ga : ga * slope;
    if constexpr (kind == Activation::tanh) {
        const float a = tanhf(z);
        return ga * (1.0f - a * a);
    }
    return ga;
}

}  // namespace fastgan
