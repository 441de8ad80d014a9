// The kernels of `kernels.h` for Python: the compiled modules of CPU and CUDA have the same functions with the same
// arguments. fastgan/ops/native/ checks tensors, of which only the addresses are passed; numbers are checked again
// here.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "fastgan/kernels.h"

namespace fastgan {

namespace py = pybind11;

// The address of a tensor, or a number; 0 for None
struct Address {
    std::uintptr_t value = 0;
};

}  // namespace fastgan

namespace pybind11::detail {

template <>
struct type_caster<fastgan::Address> {
    PYBIND11_TYPE_CASTER(fastgan::Address, const_name("Tensor | int | None"));

    bool load(handle from, bool) {
        if (from.is_none()) return true;
        const object address = PyLong_Check(from.ptr()) ? reinterpret_borrow<object>(from) : from.attr("data_ptr")();
        value.value = address.cast<std::uintptr_t>();
        return true;
    }
};

}  // namespace pybind11::detail

namespace fastgan {

inline void check(bool right, const char* name, std::int64_t given, const std::string& expected) {
    if (!right) throw std::invalid_argument(std::string(name) + " " + std::to_string(given) + ": expected " + expected);
}

// An address of elements of `size` bytes, which may be null only if `optional`
template <typename T>
T* pointer(const char* name, Address address, bool optional, std::size_t size) {
    if (!optional && address.value == 0)
        throw std::invalid_argument(std::string(name) + ": expected an address, got null");
    if (address.value % size != 0)
        throw std::invalid_argument(std::string(name) + ": expected an address divisible by " + std::to_string(size));
    return reinterpret_cast<T*>(address.value);
}

template <typename T>
T* pointer(const char* name, Address address, bool optional = false) {
    return pointer<T>(name, address, optional, sizeof(T));
}

// A matrix, which may be null if it has no rows
template <typename T>
T* matrix(const char* name, Address address, const Shape& shape) {
    return pointer<T>(name, address, shape.rows == 0, size_of(shape.dtype));
}

using ShapeArguments = std::tuple<std::int64_t, std::int64_t, std::int64_t, int>;

inline Shape shape_of(const ShapeArguments& arguments) {
    const auto [rows, channels, groups, dtype] = arguments;
    check(rows >= 0, "rows", rows, "0 or more");
    check(channels > 0, "channels", channels, "1 or more");
    check(rows <= INT64_MAX / 4 / channels, "rows", rows, "rows * channels that a 64-bit integer can count in bytes");
    check(groups > 0 && rows % groups == 0, "groups", groups, "a divisor of the " + std::to_string(rows) + " rows");
    check(dtype >= 0 && dtype <= 2, "dtype", dtype, "0 (float32), 1 (bfloat16) or 2 (float16)");
    return {rows, channels, groups, static_cast<DType>(dtype)};
}

using NormalizationArguments = std::tuple<Address, Address, Address, int, float>;

inline Normalization normalization_of(const NormalizationArguments& arguments) {
    const auto [stats, gamma, beta, activation, slope] = arguments;
    check(activation >= 0 && activation <= 3, "activation", activation, "0 (none), 1 (relu), 2 (leaky_relu), 3 (tanh)");
    return {pointer<const float>("stats", stats), pointer<const float>("gamma", gamma),
            pointer<const float>("beta", beta), static_cast<Activation>(activation), slope};
}

using RunningArguments = std::tuple<Address, Address, Address, float>;

inline RunningStats running_of(const RunningArguments& arguments) {
    const auto [mean, var, num_batches_tracked, momentum] = arguments;
    const bool updates = mean.value != 0 || var.value != 0;
    return {pointer<float>("running_mean", mean, !updates), pointer<float>("running_var", var, !updates),
            pointer<std::int64_t>("num_batches_tracked", num_batches_tracked, !(updates && momentum < 0)), momentum};
}

using WorkspaceArguments = std::tuple<std::int64_t, Address, Address>;

inline Workspace workspace_of(const WorkspaceArguments& arguments) {
    const auto [parts, partials, tickets] = arguments;
    check(parts >= 0, "parts", parts, "0 or more");
    return {parts, pointer<float>("partials", partials, parts == 0), pointer<unsigned>("tickets", tickets, parts == 0)};
}

inline void bind_kernels(py::module_& module) {
    using Free = py::call_guard<py::gil_scoped_release>;

    module.def("parts", &parts_of);

    module.def(
        "batch_stats",
        [](Address y, const ShapeArguments& of, float eps, const RunningArguments& running,
           const WorkspaceArguments& workspace, Address stats, std::int64_t queue) {
            const Shape shape = shape_of(of);
            batch_stats(shape, matrix<const void>("y", y, shape), eps, running_of(running), workspace_of(workspace),
                        pointer<float>("stats", stats), queue);
        },
        Free());

    module.def(
        "bn_act_forward",
        [](Address y, const ShapeArguments& of, const NormalizationArguments& normalization, Address a,
           std::int64_t queue) {
            const Shape shape = shape_of(of);
            bn_act_forward(shape, matrix<const void>("y", y, shape), normalization_of(normalization),
                           matrix<void>("a", a, shape), queue);
        },
        Free());

    module.def(
        "bn_backward_sums",
        [](Address ga, Address y, const ShapeArguments& of, const NormalizationArguments& normalization,
           const WorkspaceArguments& workspace, Address sums, Address totals, std::int64_t queue) {
            const Shape shape = shape_of(of);
            bn_backward_sums(shape, matrix<const void>("ga", ga, shape), matrix<const void>("y", y, shape),
                             normalization_of(normalization), workspace_of(workspace), pointer<float>("sums", sums),
                             pointer<float>("totals", totals, shape.groups == 1), queue);
        },
        Free());

    module.def(
        "bn_backward_apply",
        [](Address ga, Address y, const ShapeArguments& of, const NormalizationArguments& normalization, Address sums,
           std::int64_t count, Address g, std::int64_t queue) {
            const Shape shape = shape_of(of);
            check(count > 0, "count", count, "1 or more");
            bn_backward_apply(shape, matrix<const void>("ga", ga, shape), matrix<const void>("y", y, shape),
                              normalization_of(normalization), pointer<const float>("sums", sums, true),
                              1.0f / static_cast<float>(count), matrix<void>("g", g, shape), queue);
        },
        Free());
}

}  // namespace fastgan
