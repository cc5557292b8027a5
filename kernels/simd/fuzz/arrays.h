// Texts -> a well-formed Arrow array of them, every buffer no larger than it must be.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../arrow/c_data.h"

namespace fletcher::fuzz {

using Texts = std::vector<std::optional<std::string>>;

class ArrayOfTexts {
  public:
    // `layout` chooses the type, how many rows lie before the first and behind the last, and whether validity and
    // null_count are told where nothing is null.
    ArrayOfTexts(const Texts& texts, uint8_t layout) {
        static constexpr const char* kFormats[8] = {"u", "U", "vu", "z", "Z", "vz", "u", "vu"};
        const size_t before = layout >> 3 & 15, behind = layout >> 7;
        const std::optional<std::string> apart = "a row that is not of the array";
        rows_.assign(before, apart);
        rows_.insert(rows_.end(), texts.begin(), texts.end());
        rows_.insert(rows_.end(), behind, apart);
        schema.format = kFormats[layout & 7];
        const auto nulls = std::count(texts.begin(), texts.end(), std::nullopt);
        array.length = static_cast<int64_t>(texts.size());
        array.offset = static_cast<int64_t>(before);
        array.null_count = layout & 8 ? nulls : -1;
        nulls || layout & 16 ? add_validity() : buffers_.push_back(nullptr);
        const char type = schema.format[0];
        type == 'v' ? add_views() : type == 'u' || type == 'z' ? add_offsets<int32_t>() : add_offsets<int64_t>();
        array.n_buffers = static_cast<int64_t>(buffers_.size());
        array.buffers = buffers_.data();
    }
    ArrayOfTexts(const ArrayOfTexts&) = delete;

    ArrowSchema schema{};
    ArrowArray array{};

  private:
    uint8_t* add_buffer(size_t size) {
        owned_.push_back(std::make_unique<uint8_t[]>(size));
        buffers_.push_back(owned_.back().get());
        return owned_.back().get();
    }

    // A buffer without bytes may be absent.
    void add_bytes(const std::string& bytes) {
        if (bytes.empty()) return buffers_.push_back(nullptr);
        std::memcpy(add_buffer(bytes.size()), bytes.data(), bytes.size());
    }

    void add_validity() {
        uint8_t* bits = add_buffer((rows_.size() + 7) / 8);
        for (size_t row = 0; row < rows_.size(); ++row) {
            if (rows_[row]) bits[row / 8] = static_cast<uint8_t>(bits[row / 8] | 1 << row % 8);
        }
    }

    template <class Offset>
    void add_offsets() {
        auto* offsets = reinterpret_cast<Offset*>(add_buffer((rows_.size() + 1) * sizeof(Offset)));
        std::string data;
        for (size_t row = 0; row < rows_.size(); ++row) {
            data += rows_[row].value_or(row % 2 ? "bytes behind a null" : "");
            offsets[row + 1] = static_cast<Offset>(data.size());
        }
        add_bytes(data);
    }

    // 16 bytes a row: the size, then up to 12 bytes in place, or 4 of them, a buffer's number and an offset in it.
    void add_views() {
        uint8_t* view = add_buffer(rows_.size() * 16);
        std::string data[2];
        for (size_t row = 0; row < rows_.size(); ++row, view += 16) {
            if (!rows_[row]) {
                std::memset(view, 0xEE, 16);
                continue;
            }
            const std::string& text = *rows_[row];
            std::string& heap = data[row % 2];
            const int32_t numbers[3] = {static_cast<int32_t>(text.size()), static_cast<int32_t>(row % 2),
                                        static_cast<int32_t>(heap.size())};
            std::memcpy(view, numbers, 4);
            std::memcpy(view + 4, text.data(), std::min<size_t>(text.size(), 12));
            if (text.size() <= 12) continue;
            std::memcpy(view + 8, numbers + 1, 8);
            heap += text;
        }
        for (const std::string& heap : data) add_bytes(heap);
        const int64_t sizes[2] = {static_cast<int64_t>(data[0].size()), static_cast<int64_t>(data[1].size())};
        std::memcpy(add_buffer(sizeof sizes), sizes, sizeof sizes);
    }

    Texts rows_;
    std::vector<std::unique_ptr<uint8_t[]>> owned_;
    std::vector<const void*> buffers_;
};

}  // namespace fletcher::fuzz
