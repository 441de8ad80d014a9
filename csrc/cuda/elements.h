// Elements in memory, and as float32 for arithmetic.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "fastgan/kernels.h"

namespace fastgan {

__device__ inline float widen(float value) { return value; }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float widen(__half value) { return __half2float(value); }

// to nearest, ties to even
template <typename T>
__device__ inline T narrow(float value) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>) return __float2bfloat16_rn(value);
    if constexpr (std::is_same_v<T, __half>) return __float2half_rn(value);
    if constexpr (std::is_same_v<T, float>) return value;
}

// The V elements from index * V on in one access, of one element or 16 bytes. With an index in elements, the compiler
// would not combine the stores of adjacent elements.
template <int V, typename T>
__device__ inline void load(const T* from, std::int64_t index, float (&value)[V]) {
    if constexpr (V == 1) {
        value[0] = widen(from[index]);
    } else {
        const uint4 bits = reinterpret_cast<const uint4*>(from)[index];
        T element[V];
        memcpy(element, &bits, sizeof(bits));
#pragma unroll
        for (int v = 0; v < V; ++v) value[v] = widen(element[v]);
    }
}

template <int V, typename T>
__device__ inline void store(T* to, std::int64_t index, const float (&value)[V]) {
    T element[V];
#pragma unroll
    for (int v = 0; v < V; ++v) element[v] = narrow<T>(value[v]);
    if constexpr (V == 1) {
        to[index] = element[0];
    } else {
        uint4 bits;
        memcpy(&bits, element, sizeof(bits));
        reinterpret_cast<uint4*>(to)[index] = bits;
    }
}

// V float32 values from index * V on, in accesses of 16 bytes
template <int V>
__device__ inline void load_floats(const float* from, std::int64_t index, float (&value)[V]) {
    if constexpr (V <= 4) {
        load<V>(from, index, value);
    } else {
#pragma unroll
        for (int part = 0; part < V / 4; ++part) {
            float four[4];
            load<4>(from, index * (V / 4) + part, four);
#pragma unroll
            for (int v = 0; v < 4; ++v) value[4 * part + v] = four[v];
        }
    }
}

template <typename T>
struct Type {
    using type = T;
};

// Calls f(Type<T>) for the type of a dtype
template <typename F>
void with_type(DType dtype, F f) {
    switch (dtype) {
        case DType::float32: return f(Type<float>());
        case DType::bfloat16: return f(Type<__nv_bfloat16>());
        case DType::float16: return f(Type<__half>());
    }
}

// Whether all addresses are multiples of 16 bytes
inline bool is_aligned(std::initializer_list<const void*> addresses) {
    bool all = true;
    for (const void* address : addresses) all = all && reinterpret_cast<std::uintptr_t>(address) % 16 == 0;
    return all;
}

// Calls f(Type<T>, V as a constant): V elements are 16 bytes if all addresses and rows are multiples of 16 bytes,
// otherwise V is 1
template <typename F>
void with_elements(const Shape& shape, bool aligned, F f) {
    with_type(shape.dtype, [&](auto type) {
        constexpr int V = 16 / sizeof(typename decltype(type)::type);
        if (aligned && shape.channels % V == 0) {
            f(type, std::integral_constant<int, V>());
        } else {
            f(type, std::integral_constant<int, 1>());
        }
    });
}

}  // namespace fastgan
