// `fastgan._cuda`: the row kernels on NVIDIA GPUs. Loads without a driver; then no kernel starts.
#include "fastgan/bindings.h"
#include "kernels.h"

namespace {

const fastgan::RowKernels& rows() {
    using namespace fastgan::cuda;
    static const fastgan::RowKernels table{parts, measure, finish_statistics, normalise_activate,
                                           normalise_activate_backward, finish_norm_gradient, through_statistics,
                                           logistic};
    return table;
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
    fastgan::bind_rows(module, &rows);
}
