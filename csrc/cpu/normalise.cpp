// What is owed to a whole matrix, panel by panel.
#include "normalise.h"

namespace fastgan::FASTGAN_ISA {

void normalise_activate(const Shape& shape, const void* x, const Owed& owed, void* out, std::int64_t queue) {
    over_panels(Panels(shape), owed, queue, [&](auto type, auto kind, const Panel& panel, const Coefficients& by) {
        using T = decltype(type);
        normalise_panel<decltype(kind)::value>(static_cast<const T*>(x), panel, by, owed, static_cast<T*>(out));
    });
}

}  // namespace fastgan::FASTGAN_ISA
