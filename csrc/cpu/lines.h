// Lines of an image, normalised and activated once, between the zeros left and right of them, for a row of patches: kw
// pixels of a line lie side by side.
#pragma once

#include <cstring>

#include "normalise.h"

namespace fastgan::FASTGAN_ISA {

// The length of a line that has all pixels of a row of patches.
static inline std::int64_t length_of(const Window& window) {
    return (window.width - 1) * window.stride_w + window.kernel_w;
}

// kh lines [length, C] for one row of patches
template <Activation kind, typename T>
static void prepare_lines(const T* image, const Images& fine, const Owed& owed, const Window& window,
                          std::int64_t group, std::int64_t top, T* lines) {
    const std::int64_t length = length_of(window);
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

}  // namespace fastgan::FASTGAN_ISA
