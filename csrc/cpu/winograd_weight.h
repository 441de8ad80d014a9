// Transforms the weight [coarse, 4, 4, fine] of a convolution, one panel of NR columns at a time, and computes its
// gradient from products.
#pragma once

#include "convolution.h"
#include "gemm.h"
#include "winograd.h"

namespace fastgan {

// The distance between the matrices of points: not a multiple of a page, so that the points of an element use different
// cache sets.
static inline std::int64_t point_stride(std::int64_t size) { return ceil_div(size, 1024) * 1024 + 48; }

// The offset of tap (a, b), tap = 2 a + b, of a phase
static inline std::int64_t tap_offset(const Convolution& conv, std::int64_t coarse, int phase, int tap) {
    return ((coarse * 4 + tap / 2 * 2 + phase / 2) * 4 + tap % 2 * 2 + phase % 2) * conv.fine;
}

// Writes u [POINTS, point_stride of 4 fine x NR] for to_coarse: columns are coarse channels from panel * NR on, and
// zero beyond the last
template <int M>
static void to_coarse_panel(const Convolution& conv, const float* weight, std::int64_t panel, float* u) {
    constexpr int POINTS = (M + 1) * (M + 1);
    const std::int64_t point = point_stride(4 * conv.fine * NR);
    for (std::int64_t half = 0; half < NR; half += VECTOR) {
        const std::int64_t first = panel * NR + half;
        const std::int64_t rows = std::max<std::int64_t>(0, std::min(VECTOR, conv.coarse - first));
        for (int phase = 0; phase < 4; ++phase) {
            for_each_vector(conv.fine, [&](auto vector, std::int64_t c) {
                constexpr int count = sizeof vector / sizeof(float);
                float transposed[4][count][VECTOR] = {};  // rows of the weight are `fine`, those of a panel `coarse`
                for (int tap = 0; tap < 4; ++tap) {
                    for (std::int64_t i = 0; i < rows; ++i) {
                        const float* from = weight + tap_offset(conv, first + i, phase, tap) + c;
                        prefetch(from + count);
                        for (int k = 0; k < count; ++k) transposed[tap][k][i] = from[k];
                    }
                }
                for (int i = 0; i < count; ++i) {
                    Vector g[4], points[POINTS];
                    for (int tap = 0; tap < 4; ++tap) g[tap] = load<Vector>(transposed[tap][i]);
                    weight_transform<M>(g, points);
                    float* to = u + (phase * conv.fine + c + i) * NR + half;
                    for (int k = 0; k < POINTS; ++k) store(to + k * point, points[k]);
                }
            });
        }
    }
}

// Writes u [POINTS, point_stride of coarse x NR] for to_fine: columns are fine channels of a phase from `first` on
template <int M>
static void to_fine_panel(const Convolution& conv, const float* weight, int phase, std::int64_t first, float* u) {
    constexpr int POINTS = (M + 1) * (M + 1);
    const std::int64_t point = point_stride(conv.coarse * NR);
    for (std::int64_t coarse = 0; coarse < conv.coarse; ++coarse) {
        for_each_vector(std::min(NR, conv.fine - first), [&](auto vector, std::int64_t c) {
            using V = decltype(vector);
            V g[4], points[POINTS];
            for (int tap = 0; tap < 4; ++tap)
                g[tap] = load<V>(weight + tap_offset(conv, coarse, phase, tap) + first + c);
            weight_transform<M>(g, points);
            for (int k = 0; k < POINTS; ++k) store(u + k * point + coarse * NR + c, points[k]);
        });
    }
}

// gradient (+)= the transformed products [POINTS, rows, columns] of a phase, for coarse channels from `coarse` on and
// fine channels from `fine` on; each point has memory for a matrix of SIDE x SIDE.
template <int M, int SIDE>
static void store_weight(const Convolution& conv, const float* products, std::int64_t coarse, std::int64_t rows,
                         int phase, std::int64_t fine, std::int64_t columns, bool adds, float* gradient) {
    constexpr int POINTS = (M + 1) * (M + 1);
    for (std::int64_t i = 0; i < rows; ++i) {
        for_each_vector(columns, [&](auto vector, std::int64_t c) {
            using V = decltype(vector);
            V u[POINTS], g[4];
            for (int k = 0; k < POINTS; ++k) u[k] = load<V>(products + k * point_stride(SIDE * SIDE) + i * SIDE + c);
            weight_adjoint<M>(u, g);
            for (int tap = 0; tap < 4; ++tap) {
                float* to = gradient + tap_offset(conv, coarse + i, phase, tap) + fine + c;
                store(to, adds ? g[tap] + load<V>(to) : g[tap]);
            }
        });
    }
}

}  // namespace fastgan
