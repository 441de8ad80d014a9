// What is owed to a whole matrix, panel by panel.
#include "normalise.h"

namespace fastgan::FASTGAN_ISA {

void normalise_activate(const Shape& shape, const void* x, const Owed& owed, void* out, std::int64_t queue) {
    const Panels panels(shape);
    with_type(shape.dtype, [&](auto type) {
        using T = decltype(type);
        with_activation(owed.activation, [&](auto kind) {
#pragma omp parallel for num_threads(queue) schedule(static)
            for (std::int64_t task = 0; task < panels.count(); ++task) {
                const Panel panel = panels[task];
                const Coefficients by(owed, panel, shape.channels);
                normalise_panel<decltype(kind)::value>(static_cast<const T*>(x), panel, by, owed,
                                                       static_cast<T*>(out));
            }
        });
    });
}

}  // namespace fastgan::FASTGAN_ISA
