// `fastgan._cuda`: the kernels for NVIDIA GPUs. The module can be loaded without a driver; launches then fail.
#include "fastgan/bindings.h"

PYBIND11_MODULE(_cuda, module) { fastgan::bind_kernels(module); }
