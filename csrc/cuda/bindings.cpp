// `fastgan._cuda`: the row kernels on NVIDIA GPUs. Loads without a driver; then no kernel starts.
#include "fastgan/bindings.h"
#include "kernels.h"

namespace {

const fastgan::RowKernels& rows() {
    using namespace fastgan::cuda;
    static const fastgan::RowKernels table{parts,        measure,          finish_statistics, bn_act_forward,
                                           act_backward, bn_backward_sums, bn_backward_apply, logistic};
    return table;
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
    fastgan::bind_rows(module, &rows);
}
