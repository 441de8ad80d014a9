// Launches a kernel on a stream, without allocation or synchronization, so that a CUDA graph can capture it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace fastgan {

constexpr int WARP = 32, WARPS = 8, THREADS_BITS = 8, THREADS = 1 << THREADS_BITS;  // of every block
constexpr int BLOCKS = 2;  // minimum per multiprocessor; without it, ptxas spills in order to fit more
static_assert(WARPS * WARP == THREADS);

struct Grid {
    std::int64_t x, y = 1, z = 1;

    bool fits() const { return x <= INT32_MAX && y <= UINT16_MAX && z <= UINT16_MAX; }
};

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), Grid grid, std::int64_t stream, Arguments... arguments) {
    cudaError_t error = cudaErrorInvalidConfiguration;
    if (grid.fits()) {
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(grid.x, grid.y, grid.z);
        config.blockDim = dim3(THREADS);
        config.stream = reinterpret_cast<cudaStream_t>(stream);
        error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
        cudaGetLastError();  // otherwise the next launch would report this error
    }
    if (error != cudaSuccess) {
        throw std::runtime_error(std::string(name) + " kernel, grid of " + std::to_string(grid.x) + "x" +
                                 std::to_string(grid.y) + "x" + std::to_string(grid.z) + ": " +
                                 cudaGetErrorString(error));
    }
}

}  // namespace fastgan
