// The table of the kernels that are compiled for one instruction set.
#include "kernels.h"

#define FASTGAN_TEXT(name) #name
#define FASTGAN_NAME(name) FASTGAN_TEXT(name)

namespace fastgan::FASTGAN_ISA {

Parts parts;
Measure measure;
FinishStatistics finish_statistics;
BnActForward bn_act_forward;
ActBackward act_backward;
BnBackwardSums bn_backward_sums;
BnBackwardApply bn_backward_apply;
LogisticLoss logistic_loss;
Gather gather;
Scatter scatter;
PatchesPass patches_to_coarse;
PatchesPass patches_to_fine;
PatchesWgrad patches_wgrad;
WinogradPass winograd_gather;
WinogradPass winograd_scatter;
WinogradWgrad winograd_wgrad;

const Kernels kernels{
    FASTGAN_NAME(FASTGAN_ISA),
    {parts, measure, finish_statistics, bn_act_forward, act_backward, bn_backward_sums, bn_backward_apply,
     logistic_loss},
    gather,
    scatter,
    patches_to_coarse,
    patches_to_fine,
    patches_wgrad,
    winograd_gather,
    winograd_scatter,
    winograd_wgrad,
};

}  // namespace fastgan::FASTGAN_ISA
