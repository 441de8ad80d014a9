// The weight [coarse, 4, 4, fine] of a polyphase convolution, transformed for its passes a panel of columns at a time,
// and its gradient out of their products.
#pragma once

#include "gemm.h"
#include "panel.h"
#include "winograd.h"

namespace fastgan::FASTGAN_ISA {

// The distance from the matrix of a point to that of the next: not a multiple of a page, or all points of an element
// would share a set of the cache.
static inline std::int64_t step_of(std::int64_t size) { return ceiling(size, 1024) * 1024 + 48; }

// Where taps (2 a + b) of a phase stand.
static inline std::int64_t tap_of(const Polyphase& p, std::int64_t coarse, int phase, int tap) {
    return ((coarse * 4 + tap / 2 * 2 + phase / 2) * 4 + tap % 2 * 2 + phase % 2) * p.fine;
}

// u [POINTS, step of 4 fine x TILE_COLUMNS], for gather: columns are coarse channels, from panel * TILE_COLUMNS on, and
// zero beyond them
template <int M>
static void gather_panel(const Polyphase& p, const float* weight, std::int64_t panel, float* u) {
    constexpr int POINTS = (M + 1) * (M + 1);
    const std::int64_t step = step_of(4 * p.fine * TILE_COLUMNS);
    for (std::int64_t half = 0; half < TILE_COLUMNS; half += LANES) {
        const std::int64_t first = panel * TILE_COLUMNS + half, rows = most(0, least(LANES, p.coarse - first));
        for (int phase = 0; phase < 4; ++phase) {
            over_channels(p.fine, [&](auto lanes, std::int64_t c) {
                constexpr int count = sizeof lanes / sizeof(float);
                float turned[4][count][LANES] = {};  // the weight's rows lie along `fine`, a panel's along `coarse`
                for (int tap = 0; tap < 4; ++tap) {
                    for (std::int64_t i = 0; i < rows; ++i) {
                        const float* from = weight + tap_of(p, first + i, phase, tap) + c;
                        prefetch(from + count);
                        for (int lane = 0; lane < count; ++lane) turned[tap][lane][i] = from[lane];
                    }
                }
                for (int lane = 0; lane < count; ++lane) {
                    Vector g[4], points[POINTS];
                    for (int tap = 0; tap < 4; ++tap) g[tap] = load<Vector>(turned[tap][lane]);
                    weight_transform<M>(g, points);
                    float* to = u + (phase * p.fine + c + lane) * TILE_COLUMNS + half;
                    for (int k = 0; k < POINTS; ++k) store(to + k * step, points[k]);
                }
            });
        }
    }
}

// u [POINTS, step of coarse x TILE_COLUMNS], for scatter: columns are fine channels of a phase, from c0 on
template <int M>
static void scatter_panel(const Polyphase& p, const float* weight, int phase, std::int64_t c0, float* u) {
    constexpr int POINTS = (M + 1) * (M + 1);
    const std::int64_t step = step_of(p.coarse * TILE_COLUMNS);
    for (std::int64_t coarse = 0; coarse < p.coarse; ++coarse) {
        over_channels(least(TILE_COLUMNS, p.fine - c0), [&](auto lanes, std::int64_t c) {
            using V = decltype(lanes);
            V g[4], points[POINTS];
            for (int tap = 0; tap < 4; ++tap) g[tap] = load<V>(weight + tap_of(p, coarse, phase, tap) + c0 + c);
            weight_transform<M>(g, points);
            for (int k = 0; k < POINTS; ++k) store(u + k * step + coarse * TILE_COLUMNS + c, points[k]);
        });
    }
}

// gradient (+)= what products [POINTS, rows, columns] of a phase come to, for coarse channels from `first` and fine
// ones from c0 on; the matrix of a point has room for SIDE x SIDE.
template <int M, int SIDE>
static void weight_out(const Polyphase& p, const float* products, std::int64_t first, std::int64_t rows, int phase,
                       std::int64_t c0, std::int64_t columns, bool adds, float* gradient) {
    constexpr int POINTS = (M + 1) * (M + 1);
    for (std::int64_t i = 0; i < rows; ++i) {
        over_channels(columns, [&](auto lanes, std::int64_t c) {
            using V = decltype(lanes);
            V u[POINTS], g[4];
            for (int k = 0; k < POINTS; ++k) u[k] = load<V>(products + k * step_of(SIDE * SIDE) + i * SIDE + c);
            weight_adjoint<M>(u, g);
            for (int tap = 0; tap < 4; ++tap) {
                float* to = gradient + tap_of(p, first + i, phase, tap) + c0 + c;
                store(to, adds ? g[tap] + load<V>(to) : g[tap]);
            }
        });
    }
}

}  // namespace fastgan::FASTGAN_ISA
