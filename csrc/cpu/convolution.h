// Convolutions between a fine image and a coarse one, both float32 [N, H, W, C], in three passes:
//
//     to_coarse    coarse = conv(fine) + bias             a convolution, or dgrad of a transposed one
//     to_fine      fine = conv_transpose(coarse) + bias   a transposed convolution, or dgrad of a convolution
//     wgrad        the gradient of the weight             of both
//
// The weight is [coarse channels, kernel_h, kernel_w, fine channels]; bias [channels of the result] may be null.
#pragma once

#include <cstdint>

namespace fastgan {

// The window of coarse pixel (i, j) begins at fine pixel (i * stride_h - pad_h, j * stride_w - pad_w).
struct Convolution {
    std::int64_t images, fine_h, fine_w, fine, coarse_h, coarse_w, coarse;  // fine, coarse: channels
    std::int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
    int tile;  // 2 or 4: by Winograd's F(tile, 2), for kernels of 4x4 with a stride of 2; 0: by products of patches
};

using ConvolutionPass = void(const Convolution&, const float* from, const float* weight, const float* bias, float* to,
                             std::int64_t threads);
using ConvolutionWgrad = void(const Convolution&, const float* fine, const float* coarse, float* gradient,
                              std::int64_t threads);

ConvolutionPass patches_to_coarse, patches_to_fine, winograd_to_coarse, winograd_to_fine;
ConvolutionWgrad patches_wgrad, winograd_wgrad;

}  // namespace fastgan
