// Refusals: std::invalid_argument that names the argument. Python checks tensors; here numbers are checked once more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "fastgan/kernels.h"

namespace fastgan {

inline void check(bool right, const char* name, std::int64_t given, const std::string& expected) {
    if (!right) throw std::invalid_argument(std::string(name) + " " + std::to_string(given) + ": expected " + expected);
}

inline std::size_t size_of(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

// The address of elements of `size` bytes; null only where `optional`.
template <typename T>
T* pointer(const char* name, std::uintptr_t address, std::size_t size, bool optional = false) {
    if (!optional && address == 0) throw std::invalid_argument(std::string(name) + ": expected an address, got null");
    if (address % size != 0)
        throw std::invalid_argument(std::string(name) + ": expected an address divisible by " + std::to_string(size));
    return reinterpret_cast<T*>(address);
}

template <typename T>
T* pointer(const char* name, std::uintptr_t address, bool optional = false) {
    return pointer<T>(name, address, sizeof(T), optional);
}

inline DType dtype_of(int dtype) {
    check(dtype >= 0 && dtype <= 2, "dtype", dtype, "0 (float32), 1 (bfloat16) or 2 (float16)");
    return static_cast<DType>(dtype);
}

inline Activation activation_of(int activation) {
    check(activation >= 0 && activation <= 3, "activation", activation, "0 (none), 1 (relu), 2 (leaky_relu), 3 (tanh)");
    return static_cast<Activation>(activation);
}

inline Shape shape_of(int dtype, std::int64_t rows, std::int64_t channels, std::int64_t groups) {
    check(rows >= 0, "rows", rows, "0 or more");
    check(channels > 0, "channels", channels, "1 or more");
    check(rows <= INT64_MAX / 4 / channels, "rows", rows, "rows * channels that a 64-bit integer can count in bytes");
    check(groups > 0 && rows % groups == 0, "groups", groups, "a divisor of the " + std::to_string(rows) + " rows");
    return {rows, channels, groups, dtype_of(dtype)};
}

// The address of a matrix, null where it has no rows
template <typename T>
T* elements(const char* name, std::uintptr_t address, const Shape& shape) {
    return pointer<T>(name, address, size_of(shape.dtype), shape.rows == 0);
}

inline Normalization normalization_of(std::uintptr_t stats, std::uintptr_t gamma, std::uintptr_t beta, int activation,
                                      float slope) {
    const bool none = stats == 0;
    return {pointer<const float>("stats", stats, true), pointer<const float>("gamma", gamma, none),
            pointer<const float>("beta", beta, none), activation_of(activation), slope};
}

}  // namespace fastgan
