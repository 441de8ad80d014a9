// What CUDA offers: the row kernels of every device. `queue` is a cudaStream_t; they start there and return, without
// allocating or waiting. std::runtime_error names a kernel that does not start.
#pragma once

#include "fastgan/kernels.h"

namespace fastgan::cuda {

Parts parts;
Measure measure;
FinishStatistics finish_statistics;
NormaliseActivate normalise_activate;
NormaliseActivateBackward normalise_activate_backward;
FinishNormGradient finish_norm_gradient;
ThroughStatisticsOf through_statistics;
LogisticLoss logistic;

}  // namespace fastgan::cuda
