// im2col: patches [N * Ho * Wo, kh * kw * C], zero outside the image.
#include "convert.h"
#include "panel.h"

namespace fastgan::FASTGAN_ISA {

// One line of a patch, which begins at column x of a line of the image
template <typename T>
static void copy_run(const T* line, std::int64_t x, const Images& fine, const Window& window, T* out) {
    const std::int64_t left = least(most(-x, 0), window.kernel_w), right = least(fine.width - x, window.kernel_w);
    const std::int64_t inside = most(right - left, 0), c = fine.channels;
    std::memset(out, 0, left * c * sizeof(T));
    if (inside > 0) std::memcpy(out + left * c, line + (x + left) * c, inside * c * sizeof(T));
    std::memset(out + (left + inside) * c, 0, (window.kernel_w - left - inside) * c * sizeof(T));
}

void gather(const Images& fine, const void* x, const Window& window, std::int64_t first, std::int64_t images, void* out,
            std::int64_t queue) {
    const std::int64_t run = window.kernel_w * fine.channels, line = fine.width * fine.channels;
    with_type(fine.dtype, [&](auto type) {
        using T = decltype(type);
#pragma omp parallel for num_threads(queue) schedule(static)
        for (std::int64_t task = 0; task < images * window.height; ++task) {
            const T* image = static_cast<const T*>(x) + (first + task / window.height) * fine.height * line;
            const std::int64_t top = task % window.height * window.stride_h - window.pad_h;
            T* to = static_cast<T*>(out) + task * window.width * window.kernel_h * run;
            for (std::int64_t j = 0; j < window.width; ++j) {
                for (std::int64_t y = top; y < top + window.kernel_h; ++y, to += run) {
                    if (y < 0 || y >= fine.height) std::memset(to, 0, run * sizeof(T));
                    else copy_run(image + y * line, j * window.stride_w - window.pad_w, fine, window, to);
                }
            }
        }
    });
}

}  // namespace fastgan::FASTGAN_ISA
