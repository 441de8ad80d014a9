// `fastgan._cuda`: the kernels on NVIDIA GPUs. Loads without a driver; then no kernel starts.
#include "fastgan/bindings.h"

PYBIND11_MODULE(_cuda, module) { fastgan::bind_kernels(module); }
