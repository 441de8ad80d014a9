// The part of CUDA that csrc/cuda uses, implemented with simt.h.
#pragma once

#include <cmath>

#include "simt.h"

#define __global__
#define __device__
#define __shared__ static thread_local
#define __grid_constant__
#define __launch_bounds__(threads, blocks)

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

using cudaStream_t = struct Stream*;

enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    cudaStream_t stream;
};

inline const char* cudaGetErrorString(cudaError_t error) { return error ? "invalid configuration argument" : ""; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

template <typename... Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Parameters... arguments) {
    if (!config->gridDim.x || !config->gridDim.y || !config->gridDim.z) return cudaErrorInvalidConfiguration;
    simt::run(config->gridDim, config->blockDim, [&] { kernel(arguments...); });
    return cudaSuccess;
}

inline void __syncthreads() { simt::barrier(); }

inline float __shfl_down_sync(unsigned mask, float value, unsigned distance) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    bits = simt::exchange(mask, bits, threadIdx.x % simt::WARP + distance);
    std::memcpy(&value, &bits, sizeof(bits));
    return value;
}

// Blocks run one after another, so these are single steps.
inline void __threadfence() {}

inline unsigned atomicInc(unsigned* at, unsigned limit) {
    const unsigned before = *at;
    *at = before >= limit ? 0 : before + 1;
    return before;
}

inline float __ldcg(const float* at) { return *at; }

using std::min;

inline float __fdividef(float a, float b) { return a / b; }
