// Normalizing by table: of 8-bit levels there are 256 a channel, so each value is exact and no arithmetic is left.
#include "pack.h"

namespace conformer_fast {
namespace {

template <class Value, class Of>
void pack_as(const std::uint8_t* line, std::int32_t y, const Layout& layout, Value* out, Of of) {
    const std::ptrdiff_t size = layout.size;
    if (layout.channels_last) {
        out += 3 * size * y;
        for (std::ptrdiff_t i = 0; i < 3 * size; i += 3)
            for (int c = 0; c < 3; ++c) out[i + c] = of(c, line[i + c]);
        return;
    }
    Value* red = out + size * y;
    Value* green = red + size * size;
    Value* blue = green + size * size;
    for (std::ptrdiff_t x = 0; x < size; ++x, line += 3) {
        red[x] = of(0, line[0]);
        green[x] = of(1, line[1]);
        blue[x] = of(2, line[2]);
    }
}

template <class Value>
void pack_values(const std::uint8_t* line, std::int32_t y, const Layout& layout, std::byte* out) {
    const auto* values = reinterpret_cast<const Value*>(layout.values);
    pack_as(line, y, layout, reinterpret_cast<Value*>(out),
            [values](int channel, std::uint8_t level) { return values[256 * channel + level]; });
}

}  // namespace

void pack(const std::uint8_t* line, std::int32_t y, const Layout& layout, std::byte* out) {
    if (layout.values == nullptr) {
        pack_as(line, y, layout, reinterpret_cast<std::uint8_t*>(out), [](int, std::uint8_t level) { return level; });
    } else if (layout.value_size == 2) {
        pack_values<std::uint16_t>(line, y, layout, out);
    } else {
        pack_values<std::uint32_t>(line, y, layout, out);
    }
}

}  // namespace conformer_fast
