// How a matrix [rows, channels] is cut into panels: tasks for threads, short enough for the cache to keep between two
// passes, and for vectors of float32 wide enough whatever the number of channels is.
//
//     a group's rows -> parts of about TARGET elements -> panels of at most WIDTH columns
//
// Where there are few channels, several rows lie side by side as one line, and what belongs to a channel is repeated.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace fastgan::FASTGAN_ISA {

constexpr std::int64_t WIDTH = 256;
constexpr std::int64_t TARGET = 16384;  // elements: 64 KB of float32

static inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
static inline std::int64_t most(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
static inline std::int64_t ceiling(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Into how many parts a group's rows are cut.
static inline std::int64_t parts_of(std::int64_t group_rows, std::int64_t channels) {
    return most(1, ceiling(group_rows, most(16, TARGET / channels)));
}

// A line is `repeat` rows of `columns` channels, `pitch` elements from the next; the last may be shorter.
struct Panel {
    std::int64_t group, part;
    std::int64_t first;    // element
    std::int64_t channel;  // of its first column
    std::int64_t columns, repeat, rows, pitch;

    std::int64_t width() const { return columns * repeat; }
    std::int64_t lines() const { return (rows + repeat - 1) / repeat; }
    std::int64_t length(std::int64_t line) const {
        const std::int64_t left = rows - line * repeat;
        return columns * (left < repeat ? left : repeat);
    }
    std::int64_t at(std::int64_t line) const { return first + line * pitch; }
};

struct Panels {
    Shape shape;
    std::int64_t parts, across, columns, repeat;

    explicit Panels(const Shape& shape) : Panels(shape, parts_of(shape.group_rows(), shape.channels)) {}

    Panels(const Shape& shape, std::int64_t parts)
        : shape(shape), parts(parts), across(ceiling(shape.channels, WIDTH)), columns(least(shape.channels, WIDTH)),
          repeat(across > 1 ? 1 : WIDTH / shape.channels) {}

    std::int64_t count() const { return shape.groups * parts * across; }

    Panel operator[](std::int64_t task) const {
        const std::int64_t channel = task % across * WIDTH, part = task / across % parts, group = task / across / parts;
        const std::int64_t each = ceiling(shape.group_rows(), parts), begin = least(part * each, shape.group_rows());
        const std::int64_t rows = least(each, shape.group_rows() - begin);
        return {group,   part,   (group * shape.group_rows() + begin) * shape.channels + channel,
                channel, least(columns, shape.channels - channel), repeat, rows, repeat * shape.channels};
    }
};

// to[WIDTH]: a panel's columns of a vector [C], as often as a line has rows
static inline void repeated(const float* vector, const Panel& panel, float* to) {
    for (std::int64_t row = 0; row < panel.repeat; ++row)
        for (std::int64_t i = 0; i < panel.columns; ++i) to[row * panel.columns + i] = vector[panel.channel + i];
}

// The sum over a line's rows of what stands at column i, in order.
static inline double folded(const double* line, const Panel& panel, std::int64_t i) {
    double sum = 0.0;
    for (std::int64_t row = 0; row < panel.repeat; ++row) sum += line[row * panel.columns + i];
    return sum;
}

}  // namespace fastgan::FASTGAN_ISA
