// Binary cross-entropy of parts of a batch of logits; a few hundred numbers, of which threads would have nothing.
#include "convert.h"
#include "fastgan/logistic.h"
#include "panel.h"

namespace fastgan::FASTGAN_ISA {

template <typename T>
static void logistic_part(const T* logits, std::int64_t count, float target, float* loss, float* probability,
                          float* gradient) {
    double losses = 0.0, probabilities = 0.0;
    float room[WIDTH];
    for (std::int64_t begin = 0; begin < count; begin += WIDTH) {
        const std::int64_t length = least(WIDTH, count - begin);
        const float* values = widen(logits + begin, length, room);
        for (std::int64_t i = 0; i < length; ++i) {
            const Logistic one = logistic(values[i], target);
            losses += one.loss;
            probabilities += one.probability;
            gradient[begin + i] = one.gradient / static_cast<float>(count);
        }
    }
    *loss = static_cast<float>(losses / static_cast<double>(count));
    *probability = static_cast<float>(probabilities / static_cast<double>(count));
}

void logistic_loss(const Shape& shape, const void* logits, const float* targets, float* loss, float* probability,
                   float* gradient, std::int64_t) {
    const std::int64_t count = shape.group_rows();
    with_type(shape.dtype, [&](auto type) {
        for (std::int64_t group = 0; group < shape.groups; ++group)
            logistic_part(static_cast<const decltype(type)*>(logits) + group * count, count, targets[group],
                          loss + group, probability + group, gradient + group * count);
    });
}

}  // namespace fastgan::FASTGAN_ISA
