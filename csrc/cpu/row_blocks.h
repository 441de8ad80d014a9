// Division of a matrix [rows, channels] into blocks, the tasks of threads: small enough to stay in the cache between
// two passes, and wide enough for vectors of float32 with any number of channels.
//
//     the rows of a group -> parts of about BLOCK_ELEMENTS elements -> blocks of at most BLOCK_CHANNELS channels
//
// With few channels, `pack` adjacent rows are computed as one packed row, for which vectors of channels are repeated
// `pack` times.
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
    std::int64_t rows, pack, stride;  // stride: distance of packed rows

    std::int64_t packed_rows() const { return ceil_div(rows, pack); }
    std::int64_t begin(std::int64_t packed_row) const { return offset + packed_row * stride; }
    // Number of elements of a packed row; the last one may have fewer rows.
    std::int64_t size(std::int64_t packed_row) const { return channels * std::min(rows - packed_row * pack, pack); }

    // Writes the block's channels of a vector [C] `pack` times into to [pack * channels]
    template <typename T>
    void repeat(const T* vector, T* to) const {
        for (std::int64_t row = 0; row < pack; ++row)
            std::copy_n(vector + first_channel, channels, to + row * channels);
    }

    // Writes the sum over the rows of a packed row, in order, into to [C] at the block's channels
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
