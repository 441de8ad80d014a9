// im2col with what is owed to the image done on the way: patches [N * Ho * Wo, kh * kw * C], zero outside the image.
//
// A row of patches needs kh lines of the image.
#include "lines.h"
#include "scratch.h"

namespace fastgan::FASTGAN_ISA {

template <typename T>
static void copy_patches(const T* lines, const Window& window, std::int64_t channels, T* out) {
    const std::int64_t run = window.kernel_w * channels, length = length_of(window);
    for (std::int64_t j = 0; j < window.width; ++j)
        for (std::int64_t i = 0; i < window.kernel_h; ++i, out += run)
            std::memcpy(out, lines + (i * length + j * window.stride_w) * channels, run * sizeof(T));
}

void gather(const Images& fine, const void* x, const Owed& owed, const Window& window, std::int64_t first,
            std::int64_t images, void* out, std::int64_t queue) {
    const std::int64_t row = window.width * window.kernel_h * window.kernel_w * fine.channels;
    with_type(fine.dtype, [&](auto type) {
        using T = decltype(type);
        with_activation(owed.activation, [&](auto kind) {
            const Rooms<T> rooms(queue, window.kernel_h * length_of(window) * fine.channels);
#pragma omp parallel for num_threads(queue) schedule(static)
            for (std::int64_t task = 0; task < images * window.height; ++task) {
                const std::int64_t image = first + task / window.height, i = task % window.height;
                prepare_lines<decltype(kind)::value>(
                    static_cast<const T*>(x) + image * fine.height * fine.width * fine.channels, fine, owed, window,
                    image / (fine.count / fine.groups), i * window.stride_h - window.pad_h, rooms.mine());
                copy_patches(rooms.mine(), window, fine.channels, static_cast<T*>(out) + task * row);
            }
        });
    });
}

}  // namespace fastgan::FASTGAN_ISA
