// What flows into y through its statistics: g = gy + offset + steepness * (y - mean), see norm.h.
#include "convert.h"
#include "fastgan/norm.h"
#include "panel.h"

namespace fastgan::FASTGAN_ISA {

struct Slopes {
    float offset[WIDTH], steepness[WIDTH], mean[WIDTH];

    // gstatistics, statistics: [2, G, C]
    Slopes(const Shape& shape, const Panel& panel, const float* gstatistics, const float* statistics, bool rstd) {
        const std::int64_t size = shape.groups * shape.channels;
        const float inverse_count = 1.0f / static_cast<float>(shape.group_rows());
        for (std::int64_t i = 0; i < panel.width(); ++i) {
            const std::int64_t at = panel.group * shape.channels + panel.channel + i % panel.columns;
            const float gmean = gstatistics[at], gspread = gstatistics[size + at], spread = statistics[size + at];
            const ThroughStatistics by = rstd ? through_rstd(gmean, gspread, statistics[at], spread, inverse_count)
                                              : through_var(gmean, gspread, statistics[at], inverse_count);
            offset[i] = by.offset;
            steepness[i] = by.steepness;
            mean[i] = by.mean;
        }
    }
};

template <typename T>
static void through_statistics_panel(const T* gy, const T* y, const Panel& panel, const Slopes& by, T* g) {
    float incoming[WIDTH], room[WIDTH];
    for (std::int64_t l = 0; l < panel.lines(); ++l) {
        const std::int64_t length = panel.length(l);
        T* to = g + panel.at(l);
        const float* from = widen(gy + panel.at(l), length, incoming);
        const float* values = widen(y + panel.at(l), length, room);
        float* results = place(to, incoming);
        for (std::int64_t i = 0; i < length; ++i)
            results[i] = through_statistics(from[i], values[i], {by.offset[i], by.steepness[i], by.mean[i]});
        settle(results, length, to);
    }
}

void through_statistics_of(const Shape& shape, const void* gy, const void* y, const float* gstatistics,
                           const float* statistics, bool spread_is_rstd, void* g, std::int64_t queue) {
    const Panels panels(shape);
    with_type(shape.dtype, [&](auto type) {
        using T = decltype(type);
#pragma omp parallel for num_threads(queue) schedule(static)
        for (std::int64_t task = 0; task < panels.count(); ++task) {
            const Panel panel = panels[task];
            const Slopes by(shape, panel, gstatistics, statistics, spread_is_rstd);
            through_statistics_panel(static_cast<const T*>(gy), static_cast<const T*>(y), panel, by,
                                     static_cast<T*>(g));
        }
    });
}

}  // namespace fastgan::FASTGAN_ISA
