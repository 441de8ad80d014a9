// What the CPU offers: the row kernels of every device, and patches. Each source is compiled once for each instruction
// set, into a namespace of its own, and all of them make a table there.
#pragma once

#include "fastgan/kernels.h"

#ifndef FASTGAN_ISA
#define FASTGAN_ISA portable
#endif

namespace fastgan {

struct Kernels {
    const char* isa;
    RowKernels rows;
};

namespace portable {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}

}  // namespace fastgan
