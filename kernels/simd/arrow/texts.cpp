#include "texts.h"

#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

namespace fletcher::arrow {
namespace {

using wordpiece::Text;

// An empty text needs an address, for nullptr means null.
constexpr uint8_t kEmpty[1] = {};

const uint8_t* bytes(const void* buffer) { return buffer ? static_cast<const uint8_t*>(buffer) : kEmpty; }

template <class Offset>
Text at_offset(const ArrowArray& array, int64_t row) {
    const auto* offsets = static_cast<const Offset*>(array.buffers[1]);
    return {bytes(array.buffers[2]) + offsets[row], static_cast<size_t>(offsets[row + 1] - offsets[row])};
}

struct View {
    int32_t size;
    union {
        uint8_t inlined[12];
        struct {
            uint8_t prefix[4];
            int32_t buffer, offset;
        } apart;
    };
};
static_assert(sizeof(View) == 16);

Text in_view(const ArrowArray& array, int64_t row) {
    const View& view = static_cast<const View*>(array.buffers[1])[row];
    const auto size = static_cast<size_t>(view.size);
    if (size <= sizeof view.inlined) return {view.inlined, size};
    return {bytes(array.buffers[2 + view.apart.buffer]) + view.apart.offset, size};
}

using Reader = Text (*)(const ArrowArray&, int64_t);

Reader reader_of(const ArrowSchema& schema) {
    const std::string_view format = schema.format;
    if (!schema.dictionary) {
        if (format == "u" || format == "z") return at_offset<int32_t>;
        if (format == "U" || format == "Z") return at_offset<int64_t>;
        if (format == "vu" || format == "vz") return in_view;
    }
    const std::string type = schema.dictionary ? "dictionary" : "type with format '" + std::string(format) + "'";
    throw std::invalid_argument("an Arrow array of strings or binary is needed, not of a " + type +
                                ": cast it with .cast(pa.string())");
}

}  // namespace

void append_texts(const ArrowSchema& schema, const ArrowArray& array, std::vector<Text>& texts) {
    const Reader read = reader_of(schema);
    const auto* validity = array.n_buffers > 0 ? static_cast<const uint8_t*>(array.buffers[0]) : nullptr;
    if (array.null_count == 0) validity = nullptr;
    texts.reserve(texts.size() + static_cast<size_t>(array.length));
    for (int64_t row = array.offset; row < array.offset + array.length; ++row) {
        const bool valid = !validity || validity[row / 8] >> row % 8 & 1;
        texts.push_back(valid ? read(array, row) : Text{nullptr, 0});
    }
}

}  // namespace fletcher::arrow
