// How a matrix [rows, channels] is cut into blocks, the tasks of threads: short enough for the cache to keep a block
// between two passes over it, and wide enough for vectors of float32 whatever the number of channels is.
//
//     the rows of a group -> parts of about BLOCK_ELEMENTS elements -> blocks of at most BLOCK_CHANNELS channels
//
// Where there are few channels, `pack` neighbouring rows are computed as one packed row, for which vectors of channels
// are repeated `pack` times.
#pragma once

#include <algorithm>
#include <cstdint>

#include "fastgan/kernels.h"

namespace fastgan {

constexpr std::int64_t BLOCK_CHANNELS = 256, BLOCK_ELEMENTS = 16384;  // 64 KB of float32

struct RowBlock {
    std::int64_t group, part;
    std::int64_t offset;  // of its first element
    std::int64_t first_channel, channels;
    std::int64_t rows, pack, stride;  // stride: from a packed row to the next

    std::int64_t packed_rows() const { return ceil_div(rows, pack); }
    std::int64_t begin(std::int64_t packed_row) const { return offset + packed_row * stride; }
    // Elements of a packed row: the last one may have fewer rows.
    std::int64_t size(std::int64_t packed_row) const { return channels * std::min(rows - packed_row * pack, pack); }

    // to [pack * channels]: the block's channels of a vector [C], `pack` times
    template <typename T>
    void repeat(const T* vector, T* to) const {
        for (std::int64_t row = 0; row < pack; ++row)
            std::copy_n(vector + first_channel, channels, to + row * channels);
    }

    // to [C] at the block's channels: the sum over the rows of a packed row, in order
    void sum_packed(const double* packed_row, double* to) const {
        for (std::int64_t i = 0; i < channels; ++i) {
            double sum = 0.0;
            for (std::int64_t row = 0; row < pack; ++row) sum += packed_row[row * channels + i];
            to[first_channel + i] = sum;
        }
    }
};

struct RowBlocks {
    Shape shape;
    std::int64_t parts, part_rows, across;  // parts of a group; blocks side by side

    explicit RowBlocks(const Shape& shape) : shape(shape), across(ceil_div(shape.channels, BLOCK_CHANNELS)) {
        const std::int64_t rows = std::max<std::int64_t>(16, BLOCK_ELEMENTS / shape.channels);
        parts = std::max<std::int64_t>(1, ceil_div(shape.group_rows(), rows));
        part_rows = ceil_div(shape.group_rows(), parts);
    }

    std::int64_t count() const { return shape.groups * parts * across; }

    std::int64_t rows_of(std::int64_t part) const {
        return std::max<std::int64_t>(0, std::min(part_rows, shape.group_rows() - part * part_rows));
    }

    RowBlock operator[](std::int64_t task) const {
        const std::int64_t part = task / across % parts, group = task / across / parts;
        const std::int64_t channel = task % across * BLOCK_CHANNELS;
        const std::int64_t row = group * shape.group_rows() + std::min(part * part_rows, shape.group_rows());
        const std::int64_t pack = across > 1 ? 1 : BLOCK_CHANNELS / shape.channels;
        return {group,
                part,
                row * shape.channels + channel,
                channel,
                std::min(BLOCK_CHANNELS, shape.channels - channel),
                rows_of(part),
                pack,
                pack * shape.channels};
    }
};

}  // namespace fastgan
