// Which of the threads of a loop this is.
#pragma once

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "kernels.h"

namespace fastgan::FASTGAN_ISA {

static inline std::int64_t this_thread() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

}  // namespace fastgan::FASTGAN_ISA
