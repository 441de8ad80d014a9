// `fastgan._cpu`: the kernels of the best instruction set that was compiled and that this processor has; FASTGAN_ISA in
// the environment names another.
#include <cstdlib>

#include "fastgan/bindings.h"
#include "kernels.h"

namespace fastgan {
namespace {

std::vector<const Kernels*> usable() {  // the best first
    std::vector<const Kernels*> tables;
#ifdef FASTGAN_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        tables.push_back(&avx512::kernels);
    if (avx2) tables.push_back(&avx2::kernels);
#endif
    tables.push_back(&portable::kernels);
    return tables;
}

const Kernels* chosen = nullptr;

const RowKernels& rows() { return chosen->rows; }

std::string names() {
    std::string all;
    for (const Kernels* table : usable()) all += (all.empty() ? "" : ", ") + std::string(table->isa);
    return all;
}

void use(const std::string& isa) {
    for (const Kernels* table : usable()) {
        if (isa == table->isa) {
            chosen = table;
            return;
        }
    }
    throw std::invalid_argument("isa " + isa + ": this processor and this build have " + names());
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
    const char* asked = std::getenv("FASTGAN_ISA");
    if (asked != nullptr && *asked != 0) {
        try {
            use(asked);
        } catch (const std::invalid_argument& error) {
            throw py::import_error(std::string("FASTGAN_ISA in the environment: ") + error.what());
        }
    } else {
        chosen = usable().front();
    }
    module.def("isa", [] { return chosen->isa; }, "the instruction set whose kernels run");
    module.def("isas", [] {
        py::list all;
        for (const Kernels* table : usable()) all.append(table->isa);
        return all;
    }, "those that could, the best first");
    module.def("use", &use, "run those of another instruction set from now on");
    bind_rows(module, &rows);
}

}  // namespace fastgan
