// Elements as they are stored, and as they are computed with: float32 whatever they are stored as.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "fastgan/kernels.h"

namespace fastgan::cuda {

__device__ inline float widen(float value) { return value; }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float widen(__half value) { return __half2float(value); }

// to nearest, ties to even
__device__ inline void narrow(float value, float& to) { to = value; }
__device__ inline void narrow(float value, __nv_bfloat16& to) { to = __float2bfloat16_rn(value); }
__device__ inline void narrow(float value, __half& to) { to = __float2half_rn(value); }

template <typename T, int V>
struct alignas(V * sizeof(T)) Pack {
    T element[V];
};

// V neighbouring elements in one access
template <int V, typename T>
__device__ inline void load(const T* at, float (&value)[V]) {
    const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(at);
#pragma unroll
    for (int v = 0; v < V; ++v) value[v] = widen(pack.element[v]);
}

template <int V, typename T>
__device__ inline void store(T* at, const float (&value)[V]) {
    Pack<T, V> pack;
#pragma unroll
    for (int v = 0; v < V; ++v) narrow(value[v], pack.element[v]);
    *reinterpret_cast<Pack<T, V>*>(at) = pack;
}

template <typename T>
struct Type {
    using type = T;
};

// f(Type<T>) for the T that a dtype stands for
template <typename F>
void with_type(DType dtype, F f) {
    switch (dtype) {
        case DType::float32: return f(Type<float>());
        case DType::bfloat16: return f(Type<__nv_bfloat16>());
        case DType::float16: return f(Type<__half>());
    }
}

// f(Type<T>, V as a constant): V elements are 16 bytes where every row of every matrix is made of whole 16 bytes, else 1
template <typename F>
void with_elements(const Shape& shape, std::initializer_list<const void*> matrices, F f) {
    with_type(shape.dtype, [&](auto type) {
        constexpr int many = 16 / sizeof(typename decltype(type)::type);
        bool whole = shape.channels % many == 0;
        for (const void* matrix : matrices) whole = whole && reinterpret_cast<std::uintptr_t>(matrix) % 16 == 0;
        if (whole) {
            f(type, std::integral_constant<int, many>());
        } else {
            f(type, std::integral_constant<int, 1>());
        }
    });
}

}  // namespace fastgan::cuda
