// UTF-8, one code point at a time.
#pragma once

#include <cstdint>

namespace fletcher::unicode {

// The code point at `p`, where 4 bytes can be read. Returns its length in bytes, 0 where no valid sequence begins:
// overlong forms, surrogates and what lies beyond U+10FFFF are not valid.
static inline uint32_t decode(const uint8_t* p, uint32_t& code_point) {
    const uint32_t lead = p[0];
    if (lead < 0x80) {
        code_point = lead;
        return 1;
    }
    if (lead < 0xE0) {
        code_point = (lead & 0x1F) << 6 | (p[1] & 0x3F);
        return lead >= 0xC2 && (p[1] & 0xC0) == 0x80 ? 2 : 0;
    }
    if (lead < 0xF0) {
        code_point = (lead & 0x0F) << 12 | (p[1] & 0x3F) << 6 | (p[2] & 0x3F);
        const bool continued = (p[1] & 0xC0) == 0x80 && (p[2] & 0xC0) == 0x80;
        return continued && code_point >= 0x800 && (code_point & 0xF800) != 0xD800 ? 3 : 0;
    }
    code_point = (lead & 0x07) << 18 | (p[1] & 0x3F) << 12 | (p[2] & 0x3F) << 6 | (p[3] & 0x3F);
    const bool continued = (p[1] & 0xC0) == 0x80 && (p[2] & 0xC0) == 0x80 && (p[3] & 0xC0) == 0x80;
    return lead < 0xF5 && continued && code_point >= 0x10000 && code_point < 0x110000 ? 4 : 0;
}

// Writes `code_point` to `out`, up to 4 bytes; returns how many.
static inline uint32_t encode(uint32_t code_point, uint8_t* out) {
    if (code_point < 0x80) {
        out[0] = static_cast<uint8_t>(code_point);
        return 1;
    }
    if (code_point < 0x800) {
        out[0] = static_cast<uint8_t>(0xC0 | code_point >> 6);
        out[1] = static_cast<uint8_t>(0x80 | (code_point & 0x3F));
        return 2;
    }
    if (code_point < 0x10000) {
        out[0] = static_cast<uint8_t>(0xE0 | code_point >> 12);
        out[1] = static_cast<uint8_t>(0x80 | (code_point >> 6 & 0x3F));
        out[2] = static_cast<uint8_t>(0x80 | (code_point & 0x3F));
        return 3;
    }
    out[0] = static_cast<uint8_t>(0xF0 | code_point >> 18);
    out[1] = static_cast<uint8_t>(0x80 | (code_point >> 12 & 0x3F));
    out[2] = static_cast<uint8_t>(0x80 | (code_point >> 6 & 0x3F));
    out[3] = static_cast<uint8_t>(0x80 | (code_point & 0x3F));
    return 4;
}

}  // namespace fletcher::unicode
