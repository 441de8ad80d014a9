// col2im: images out of patches [N * Ho * Wo, kh * kw * C], each pixel the sum of what the patches have for it, plus bias.
//
// A line of the image is summed in float32 by one thread, patch after patch in order, and rounded once.
#include "convert.h"
#include "panel.h"
#include "scratch.h"

namespace fastgan::FASTGAN_ISA {

template <typename T>
static inline void add_run(const T* run, std::int64_t count, float* sum) {
    float room[WIDTH];
    for (std::int64_t begin = 0; begin < count; begin += WIDTH) {
        const std::int64_t length = least(WIDTH, count - begin);
        const float* values = widen(run + begin, length, room);
        for (std::int64_t i = 0; i < length; ++i) sum[begin + i] += values[i];
    }
}

// patches: of the image; sum: its line h with the padding left and right of it
template <typename T>
static void add_line(const T* patches, const Window& window, std::int64_t channels, std::int64_t h, float* sum) {
    const std::int64_t run = window.kernel_w * channels;
    for (std::int64_t i = 0; i < window.kernel_h; ++i) {
        const std::int64_t from = h + window.pad_h - i, row = from / window.stride_h;
        if (from < 0 || from % window.stride_h != 0 || row >= window.height) continue;
        for (std::int64_t j = 0; j < window.width; ++j)
            add_run(patches + ((row * window.width + j) * window.kernel_h + i) * run, run,
                    sum + j * window.stride_w * channels);
    }
}

void scatter(const Images& fine, const void* patches, const float* bias, const Window& window, void* out,
             std::int64_t queue) {
    const std::int64_t channels = fine.channels, size = fine.width * channels;
    const std::int64_t reach = (window.width - 1) * window.stride_w + window.kernel_w;
    const std::int64_t length = most(reach, window.pad_w + fine.width) * channels;
    const std::int64_t each = window.height * window.width * window.kernel_h * window.kernel_w * channels;
    const Rooms<float> rooms(queue, length);
    with_type(fine.dtype, [&](auto type) {
        using T = decltype(type);
#pragma omp parallel for num_threads(queue) schedule(static)
        for (std::int64_t task = 0; task < fine.count * fine.height; ++task) {
            float* sum = rooms.mine();
            for (std::int64_t i = 0; i < length; ++i) sum[i] = bias == nullptr ? 0.0f : bias[i % channels];
            add_line(static_cast<const T*>(patches) + task / fine.height * each, window, channels, task % fine.height,
                     sum);
            const float* line = sum + window.pad_w * channels;
            T* to = static_cast<T*>(out) + task * size;
            if constexpr (sizeof(T) == sizeof(float))
                for (std::int64_t i = 0; i < size; ++i) to[i] = line[i];
            else
                settle(line, size, to);
        }
    });
}

}  // namespace fastgan::FASTGAN_ISA
