#include "arrow.h"

#include <cstring>
#include <stdexcept>

namespace conformer_fast {
namespace {

// As https://arrow.apache.org/docs/format/CDataInterface.html lays them out.
struct ArrowSchema {
    const char* format;
    const char* name;
    const char* metadata;
    std::int64_t flags;
    std::int64_t n_children;
    ArrowSchema** children;
    ArrowSchema* dictionary;
    void (*release)(ArrowSchema*);
    void* private_data;
};

struct ArrowArray {
    std::int64_t length;
    std::int64_t null_count;
    std::int64_t offset;
    std::int64_t n_buffers;
    std::int64_t n_children;
    const void** buffers;
    ArrowArray** children;
    ArrowArray* dictionary;
    void (*release)(ArrowArray*);
    void* private_data;
};

}  // namespace

Memory memory_of(const void* arrow_schema, const void* arrow_array) {
    const auto* schema = static_cast<const ArrowSchema*>(arrow_schema);
    const auto* array = static_cast<const ArrowArray*>(arrow_array);
    const bool usable = schema->release != nullptr && std::strcmp(schema->format, "+w:4") == 0 &&
                        schema->n_children == 1 && std::strcmp(schema->children[0]->format, "C") == 0 &&
                        array->release != nullptr && array->offset == 0 && array->n_children == 1 &&
                        array->children[0]->offset == 0 && array->children[0]->n_buffers == 2 &&
                        array->length >= 0 && array->children[0]->length / 4 >= array->length &&
                        array->children[0]->buffers[1] != nullptr;
    if (!usable) throw std::invalid_argument("the picture's memory is not four bytes a pixel; convert it to RGB");
    return {static_cast<const std::uint8_t*>(array->children[0]->buffers[1]), array->length};
}

}  // namespace conformer_fast
