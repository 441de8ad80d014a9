// im2col with what is owed to the image done on the way: patches [N * Ho * Wo, kh * kw * C], zero outside the image.
//
// A row of patches needs kh lines of the image. They are normalised and activated once, between the zeros left and right
// of them, and are then only copied: kw pixels of a line lie side by side.
#include <cstring>

#include "normalise.h"
#include "scratch.h"

namespace fastgan::FASTGAN_ISA {

// kh lines [length, C] for one row of patches
template <Activation kind, typename T>
static void prepare_lines(const T* image, const Images& fine, const Owed& owed, const Window& window, std::int64_t group,
                          std::int64_t top, std::int64_t length, T* lines) {
    const std::int64_t channels = fine.channels, left = least(window.pad_w, length);
    const std::int64_t pixels = least(fine.width, length - left), right = length - left - pixels;
    for (std::int64_t i = 0; i < window.kernel_h; ++i) {
        T* line = lines + i * length * channels;
        const bool inside = top + i >= 0 && top + i < fine.height;
        std::memset(line, 0, (inside ? left : length) * channels * sizeof(T));
        if (inside) std::memset(line + (left + pixels) * channels, 0, right * channels * sizeof(T));
    }
    const Panels panels({pixels, channels, 1, fine.dtype}, 1);
    for (std::int64_t task = 0; task < panels.count(); ++task) {
        Panel panel = panels[task];
        panel.group = group;
        const Coefficients by(owed, panel, channels);
        for (std::int64_t i = most(0, -top); i < least(window.kernel_h, fine.height - top); ++i)
            normalise_panel<kind>(image + (top + i) * fine.width * channels, panel, by, owed,
                                  lines + (i * length + left) * channels);
    }
}

template <typename T>
static void copy_patches(const T* lines, const Window& window, std::int64_t length, std::int64_t channels, T* out) {
    const std::int64_t run = window.kernel_w * channels;
    for (std::int64_t j = 0; j < window.width; ++j)
        for (std::int64_t i = 0; i < window.kernel_h; ++i, out += run)
            std::memcpy(out, lines + (i * length + j * window.stride_w) * channels, run * sizeof(T));
}

void gather(const Images& fine, const void* x, const Owed& owed, const Window& window, std::int64_t first,
            std::int64_t images, void* out, std::int64_t queue) {
    const std::int64_t length = (window.width - 1) * window.stride_w + window.kernel_w;
    const std::int64_t row = window.width * window.kernel_h * window.kernel_w * fine.channels;
    with_type(fine.dtype, [&](auto type) {
        using T = decltype(type);
        with_activation(owed.activation, [&](auto kind) {
            const Rooms<T> rooms(queue, window.kernel_h * length * fine.channels);
#pragma omp parallel for num_threads(queue) schedule(static)
            for (std::int64_t task = 0; task < images * window.height; ++task) {
                const std::int64_t image = first + task / window.height, i = task % window.height;
                prepare_lines<decltype(kind)::value>(
                    static_cast<const T*>(x) + image * fine.height * fine.width * fine.channels, fine, owed, window,
                    image / (fine.count / fine.groups), i * window.stride_h - window.pad_h, length, rooms.mine());
                copy_patches(rooms.mine(), window, length, fine.channels, static_cast<T*>(out) + task * row);
            }
        });
    });
}

}  // namespace fastgan::FASTGAN_ISA
