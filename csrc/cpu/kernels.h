// What the CPU offers: the row kernels of every device, and patches. Each source is compiled once for each instruction
// set, into a namespace of its own, and all of them make a table there.
#pragma once

#include "fastgan/kernels.h"

#ifndef FASTGAN_ISA
#define FASTGAN_ISA portable
#endif

namespace fastgan {

// [count, height, width, channels], contiguous
struct Images {
    std::int64_t count, height, width, channels;
    DType dtype;
};

// The patch of coarse pixel (i, j) begins at fine pixel (i * stride_h - pad_h, j * stride_w - pad_w).
struct Window {
    std::int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
    std::int64_t height, width;  // of the coarse image
};

// out [images * height * width, kernel_h * kernel_w * C]: the patches of `images` images, beginning with `first`; zero
// outside the image
using Gather = void(const Images& fine, const void* x, const Window&, std::int64_t first, std::int64_t images, void* out,
                    std::int64_t queue);

// out: fine images, the transpose of that: bias [C] (or null) and the sum of what all patches have for a pixel
using Scatter = void(const Images& fine, const void* patches, const float* bias, const Window&, void* out,
                     std::int64_t queue);

// The same convolutions in one go, for fine images of few channels, in float32; the coarse image has `coarse` channels,
// weight is [coarse, kernel_h * kernel_w * C].
//     to coarse    coarse = conv(fine) + bias [coarse]
//     to fine      fine = conv_transpose(coarse) + bias [C]
using PatchesPass = void(const Images& fine, const float* from, const Window&, const float* weight, const float* bias,
                         std::int64_t coarse, float* to, std::int64_t queue);

// The weight's gradient from both images
using PatchesWgrad = void(const Images& fine, const float* x, const float* coarse_image, const Window&,
                          std::int64_t coarse, float* gradient, std::int64_t queue);

// A 4x4 convolution of stride 2 between a fine image [H, W, C] and a coarse one: its weight is [coarse, 4, 4, fine].
struct Polyphase {
    std::int64_t images, fine_h, fine_w, fine, coarse_h, coarse_w, coarse, pad_h, pad_w;
};

// By Winograd's F(tile, 2), tile 2 or 4, in float32. One image from the other:
//     gather     coarse = conv(fine) + bias [coarse]
//     scatter    fine = conv_transpose(coarse) + bias [fine]
using WinogradPass = void(const Polyphase&, int tile, const float* from, const float* weight, const float* bias,
                          float* to, std::int64_t queue);

// The weight's gradient from both images
using WinogradWgrad = void(const Polyphase&, int tile, const float* fine, const float* coarse, float* gradient,
                           std::int64_t queue);

struct Kernels {
    const char* isa;
    RowKernels rows;
    Gather* gather;
    Scatter* scatter;
    PatchesPass* patches_to_coarse;
    PatchesPass* patches_to_fine;
    PatchesWgrad* patches_wgrad;
    WinogradPass* winograd_gather;
    WinogradPass* winograd_scatter;
    WinogradWgrad* winograd_wgrad;
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
