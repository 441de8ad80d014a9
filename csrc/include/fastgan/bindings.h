// The row kernels for Python: `fastgan._cpu` and `fastgan._cuda` have the same functions with the same arguments.
// Tensors come as addresses (integers); fastgan/ops/native/rows.py says what each of them is.
#pragma once

#include <pybind11/pybind11.h>

#include "fastgan/checks.h"
#include "fastgan/kernels.h"

namespace fastgan {

namespace py = pybind11;
using Address = std::uintptr_t;

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
        table().measure(shape, pointer<const void>("x", x, size_of(shape.dtype), rows == 0), parts,
                       pointer<float>("partials", partials), queue);
    }, Free());

    module.def("finish_statistics", [table](Address partials, std::int64_t channels, std::int64_t groups,
                                             std::int64_t parts, float eps, Address running_mean, Address running_var,
                                             Address tracked, float momentum, Address out, std::int64_t queue) {
        check(channels > 0, "channels", channels, "1 or more");
        check(groups > 0, "groups", groups, "1 or more");
        check(parts > 0, "parts", parts, "1 or more");
        const bool runs = running_mean != 0 || running_var != 0;
        const Measurement measurement{eps, pointer<float>("running_mean", running_mean, !runs),
                                      pointer<float>("running_var", running_var, !runs),
                                      pointer<std::int64_t>("tracked", tracked, !(runs && momentum < 0)), momentum};
        table().finish_statistics(pointer<const float>("partials", partials), channels, groups, parts, measurement,
                                 pointer<float>("out", out), queue);
    }, Free());

    module.def("normalise_activate", [table](Address x, int dtype, std::int64_t rows, std::int64_t channels,
                                              std::int64_t groups, Address statistics, std::int64_t statistic_groups,
                                              Address gamma, Address beta, std::int64_t gamma_groups, int activation,
                                              float slope, Address out, std::int64_t queue) {
        const Shape shape = shape_of(dtype, rows, channels, groups);
        const std::size_t size = size_of(shape.dtype);
        table().normalise_activate(
            shape, pointer<const void>("x", x, size, rows == 0),
            owed_of(groups, statistics, statistic_groups, gamma, beta, gamma_groups, activation, slope),
            pointer<void>("out", out, size, rows == 0), queue);
    }, Free());

    module.def("normalise_activate_backward", [table](Address gout, Address x, int dtype, std::int64_t rows,
                                                       std::int64_t channels, std::int64_t groups, Address statistics,
                                                       std::int64_t statistic_groups, Address gamma, Address beta,
                                                       std::int64_t gamma_groups, int activation, float slope,
                                                       std::int64_t parts, Address gx, Address partials,
                                                       std::int64_t queue) {
        const Shape shape = shape_of(dtype, rows, channels, groups);
        const std::size_t size = size_of(shape.dtype);
        check(parts > 0, "parts", parts, "1 or more");
        table().normalise_activate_backward(
            shape, pointer<const void>("gout", gout, size, rows == 0), pointer<const void>("x", x, size, rows == 0),
            owed_of(groups, statistics, statistic_groups, gamma, beta, gamma_groups, activation, slope), parts,
            pointer<void>("gx", gx, size, rows == 0), pointer<float>("partials", partials, statistics == 0), queue);
    }, Free());

    module.def("finish_norm_gradient", [table](Address partials, std::int64_t channels, std::int64_t groups,
                                                std::int64_t parts, Address statistics, std::int64_t statistic_groups,
                                                Address gamma, std::int64_t gamma_groups, Address out,
                                                std::int64_t queue) {
        check(channels > 0, "channels", channels, "1 or more");
        check(groups > 0, "groups", groups, "1 or more");
        check(parts > 0, "parts", parts, "1 or more");
        pointer<const float>("statistics", statistics);
        const Owed owed = owed_of(groups, statistics, statistic_groups, gamma, gamma, gamma_groups, 0, 0.0f);
        table().finish_norm_gradient(pointer<const float>("partials", partials), channels, groups, parts, owed,
                                    pointer<float>("out", out), queue);
    }, Free());

    module.def("through_statistics", [table](Address gy, Address y, int dtype, std::int64_t rows,
                                              std::int64_t channels, std::int64_t groups, Address gstatistics,
                                              Address statistics, bool spread_is_rstd, Address out,
                                              std::int64_t queue) {
        const Shape shape = shape_of(dtype, rows, channels, groups);
        const std::size_t size = size_of(shape.dtype);
        table().through_statistics(shape, pointer<const void>("gy", gy, size, rows == 0),
                                  pointer<const void>("y", y, size, rows == 0),
                                  pointer<const float>("gstatistics", gstatistics),
                                  pointer<const float>("statistics", statistics), spread_is_rstd,
                                  pointer<void>("out", out, size, rows == 0), queue);
    }, Free());

    module.def("logistic", [table](Address logits, int dtype, std::int64_t count, std::int64_t groups, Address targets,
                                    Address loss, Address probability, Address gradient, std::int64_t queue) {
        const Shape shape = shape_of(dtype, count, 1, groups);
        table().logistic(shape, pointer<const void>("logits", logits, size_of(shape.dtype), count == 0),
                        pointer<const float>("targets", targets), pointer<float>("loss", loss),
                        pointer<float>("probability", probability),
                        pointer<float>("gradient", gradient, count == 0), queue);
    }, Free());
}

}  // namespace fastgan
