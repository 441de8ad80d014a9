// What CUDA offers: the row kernels of every device. `queue` is a cudaStream_t; they start there and return, without
// allocating or waiting. std::runtime_error names a kernel that does not start.
#pragma once

#include "fastgan/kernels.h"

namespace fastgan::cuda {

Parts parts;
Measure measure;
FinishStatistics finish_statistics;
BnActForward bn_act_forward;
ActBackward act_backward;
BnBackwardSums bn_backward_sums;
BnBackwardApply bn_backward_apply;
LogisticLoss logistic;

}  // namespace fastgan::cuda
