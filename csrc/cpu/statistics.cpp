// Mean and variance of each channel of y [M, C]. Those of a part of the rows are computed in two passes, of which the
// second reads from the cache. Then all parts are merged by Chan's rule, in order and in float64:
//
//     n = sum n_t,   mean = sum n_t * mean_t / n,   M2 = sum M2_t + n_t * (mean_t - mean)^2
#include <cmath>

#include "elements.h"
#include "row_blocks.h"
#include "scratch.h"

namespace fastgan {

std::int64_t parts_of(std::int64_t, std::int64_t) { return 0; }

// Writes mean and m2 [C] at the channels of a block
template <typename T>
static void measure_block(const T* y, const RowBlock& block, double* mean, double* m2) {
    float buffer[BLOCK_CHANNELS];
    double sums[BLOCK_CHANNELS] = {}, means[BLOCK_CHANNELS];
    for (std::int64_t row = 0; row < block.packed_rows(); ++row) {
        const float* values = widen(y + block.begin(row), block.size(row), buffer);
        for (std::int64_t i = 0; i < block.size(row); ++i) sums[i] += values[i];
    }
    block.sum_packed(sums, mean);
    for (std::int64_t i = 0; i < block.channels; ++i)
        mean[block.first_channel + i] /= std::max(static_cast<double>(block.rows), 1.0);
    block.repeat(mean, means);
    for (double& sum : sums) sum = 0.0;
    for (std::int64_t row = 0; row < block.packed_rows(); ++row) {
        const float* values = widen(y + block.begin(row), block.size(row), buffer);
        for (std::int64_t i = 0; i < block.size(row); ++i) {
            const double distance = values[i] - means[i];
            sums[i] += distance * distance;
        }
    }
    block.sum_packed(sums, m2);
}

static void update(const RunningStats& running, std::int64_t channel, std::int64_t group, double count, double mean,
                   double m2) {
    const float factor = running.momentum < 0.0f ? 1.0f / static_cast<float>(*running.num_batches_tracked + group + 1)
                                                 : running.momentum;
    const float unbiased = static_cast<float>(m2 / std::max(count - 1.0, 1.0));
    float &running_mean = running.mean[channel], &running_var = running.var[channel];
    running_mean = (1.0f - factor) * running_mean + factor * static_cast<float>(mean);
    running_var = (1.0f - factor) * running_var + factor * unbiased;
}

void batch_stats(const Shape& shape, const void* y, float eps, const RunningStats& running, const Workspace&,
                 float* stats, std::int64_t threads) {
    const RowBlocks blocks(shape);
    const std::int64_t channels = shape.channels, parts = blocks.parts, size = shape.groups * parts * channels;
    const ScratchPool<double> partials(1, 2 * size);  // [2, G, parts, C]: mean and M2
    with_type(shape.dtype, [&](auto type) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (std::int64_t task = 0; task < blocks.count(); ++task) {
            const RowBlock block = blocks[task];
            double* mean = partials.data + (block.group * parts + block.part) * channels;
            measure_block(static_cast<const decltype(type)*>(y), block, mean, mean + size);
        }
    });
    const double count = static_cast<double>(shape.group_rows());
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t channel = 0; channel < channels; ++channel) {
        for (std::int64_t group = 0; group < shape.groups; ++group) {
            const double* means = partials.data + group * parts * channels + channel;  // of part t at t * channels
            double sum = 0.0, m2 = 0.0;
            for (std::int64_t t = 0; t < parts; ++t)
                sum += static_cast<double>(blocks.rows_of(t)) * means[t * channels];
            const double mean = sum / std::max(count, 1.0);
            for (std::int64_t t = 0; t < parts; ++t) {
                const double distance = means[t * channels] - mean;
                m2 += means[t * channels + size] + static_cast<double>(blocks.rows_of(t)) * distance * distance;
            }
            const double var = m2 / std::max(count, 1.0);
            float* to = stats + group * channels + channel;
            to[0] = static_cast<float>(mean);
            to[shape.groups * channels] = static_cast<float>(eps < 0.0f ? var : 1.0 / std::sqrt(var + eps));
            if (running.mean != nullptr) update(running, channel, group, count, mean, m2);
        }
    }
    if (running.num_batches_tracked != nullptr) *running.num_batches_tracked += shape.groups;
}

}  // namespace fastgan
