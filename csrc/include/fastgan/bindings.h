// The row kernels for Python: `fastgan._cpu` and `fastgan._cuda` have the same functions with the same arguments.
// Tensors come as addresses (integers); fastgan/ops/native/rows.py says what each of them is.
#pragma once

#include <pybind11/pybind11.h>

#include <tuple>

#include "fastgan/checks.h"
#include "fastgan/kernels.h"

namespace fastgan {

namespace py = pybind11;
using Address = std::uintptr_t;

// stats, gamma, beta, activation, slope
using NormalizationArguments = std::tuple<Address, Address, Address, int, float>;

// `table` is asked at each call: a processor may have several.
inline void bind_rows(py::module_& module, const RowKernels& (*table)()) {
    using Free = py::call_guard<py::gil_scoped_release>;

    module.def("parts", [table](std::int64_t group_rows, std::int64_t channels) {
        check(group_rows >= 0, "rows_per_group", group_rows, "0 or more");
        check(channels > 0, "channels", channels, "1 or more");
        return table().parts(group_rows, channels);
    });

    module.def("measure", [table](Address x, int dtype, std::int64_t rows, std::int64_t channels, std::int64_t groups,
                                   std::int64_t parts, Address partials, std::int64_t queue) {
        const Shape shape = shape_of(dtype, rows, channels, groups);
        check(parts > 0, "parts", parts, "1 or more");
        table().measure(shape, elements<const void>("x", x, shape), parts, pointer<float>("partials", partials), queue);
    }, Free());

    module.def("finish_statistics", [table](Address partials, std::int64_t channels, std::int64_t groups,
                                             std::int64_t parts, float eps, Address running_mean, Address running_var,
                                             Address num_batches_tracked, float momentum, Address out,
                                             std::int64_t queue) {
        check(channels > 0, "channels", channels, "1 or more");
        check(groups > 0, "groups", groups, "1 or more");
        check(parts > 0, "parts", parts, "1 or more");
        const bool updates = running_mean != 0 || running_var != 0;
        const RunningStats running{
            pointer<float>("running_mean", running_mean, !updates),
            pointer<float>("running_var", running_var, !updates),
            pointer<std::int64_t>("num_batches_tracked", num_batches_tracked, !(updates && momentum < 0)), momentum};
        table().finish_statistics(pointer<const float>("partials", partials), channels, groups, parts, eps, running,
                                  pointer<float>("out", out), queue);
    }, Free());

    module.def("bn_act_forward", [table](Address y, int dtype, std::int64_t rows, std::int64_t channels,
                                         std::int64_t groups, const NormalizationArguments& normalization, Address a,
                                         std::int64_t queue) {
        const Shape shape = shape_of(dtype, rows, channels, groups);
        table().bn_act_forward(shape, elements<const void>("y", y, shape), std::apply(normalization_of, normalization),
                               elements<void>("a", a, shape), queue);
    }, Free());

    module.def("act_backward", [table](Address ga, Address a, int dtype, std::int64_t rows, std::int64_t channels,
                                       int activation, float slope, Address g, std::int64_t queue) {
        const Shape shape = shape_of(dtype, rows, channels, 1);
        table().act_backward(shape, elements<const void>("ga", ga, shape), elements<const void>("a", a, shape),
                             activation_of(activation), slope, elements<void>("g", g, shape), queue);
    }, Free());

    module.def("bn_backward_sums", [table](Address ga, Address y, int dtype, std::int64_t rows, std::int64_t channels,
                                           std::int64_t groups, const NormalizationArguments& normalization,
                                           std::int64_t parts, Address partials, Address sums, std::int64_t queue) {
        const Shape shape = shape_of(dtype, rows, channels, groups);
        check(parts > 0, "parts", parts, "1 or more");
        pointer<const float>("stats", std::get<0>(normalization));
        table().bn_backward_sums(shape, elements<const void>("ga", ga, shape), elements<const void>("y", y, shape),
                                 std::apply(normalization_of, normalization), parts,
                                 pointer<float>("partials", partials, parts == 1), pointer<float>("sums", sums), queue);
    }, Free());

    module.def("bn_backward_apply", [table](Address ga, Address y, int dtype, std::int64_t rows, std::int64_t channels,
                                            std::int64_t groups, const NormalizationArguments& normalization,
                                            Address sums, std::int64_t count, Address g, std::int64_t queue) {
        const Shape shape = shape_of(dtype, rows, channels, groups);
        check(count > 0, "count", count, "1 or more");
        pointer<const float>("stats", std::get<0>(normalization));
        table().bn_backward_apply(shape, elements<const void>("ga", ga, shape), elements<const void>("y", y, shape),
                                  std::apply(normalization_of, normalization),
                                  pointer<const float>("sums", sums, true), 1.0f / static_cast<float>(count),
                                  elements<void>("g", g, shape), queue);
    }, Free());

    module.def("logistic", [table](Address logits, int dtype, std::int64_t count, std::int64_t groups, Address targets,
                                    Address loss, Address probability, Address gradient, std::int64_t queue) {
        const Shape shape = shape_of(dtype, count, 1, groups);
        table().logistic(shape, elements<const void>("logits", logits, shape), pointer<const float>("targets", targets),
                         pointer<float>("loss", loss), pointer<float>("probability", probability),
                         pointer<float>("gradient", gradient, count == 0), queue);
    }, Free());
}

}  // namespace fastgan
