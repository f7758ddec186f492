#pragma once

#include "resample.h"

namespace conformer_fast {

// Writes line y of the window, size packed RGB pixels, where `layout` wants it in `out` and as the values it names.
void pack(const std::uint8_t* line, std::int32_t y, const Layout& layout, std::byte* out);

}  // namespace conformer_fast
