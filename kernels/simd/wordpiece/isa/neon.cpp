// 16 bytes a register (every 64-bit ARM), four registers a step.
#include <arm_neon.h>

#include "../md5_lanes.h"
#include "../segment.h"
#include "bit_positions.h"
#include "nibbles.h"

namespace fletcher::wordpiece {
namespace {

// One bit a byte, out of four registers whose bytes are all ones or all zeros.
inline uint64_t mask_of(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d) {
    const uint8x16_t weights = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t ab = vpaddq_u8(vandq_u8(a, weights), vandq_u8(b, weights));
    const uint8x16_t cd = vpaddq_u8(vandq_u8(c, weights), vandq_u8(d, weights));
    const uint8x16_t abcd = vpaddq_u8(ab, cd);
    return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(abcd, abcd)), 0);
}

struct Quarter {
    uint8x16_t other, space, punctuation;
};

inline Quarter classify_quarter(const uint8_t* in, uint8_t* out, bool lowercase) {
    const uint8x16_t bytes = vld1q_u8(in);
    const uint8x16_t low = vqtbl1q_u8(vld1q_u8(kLowNibble), vandq_u8(bytes, vdupq_n_u8(0x0F)));
    const uint8x16_t high = vqtbl1q_u8(vld1q_u8(kHighNibble), vshrq_n_u8(bytes, 4));
    const uint8x16_t classes = vandq_u8(low, high);
    const uint8x16_t upper = vcltq_u8(vsubq_u8(bytes, vdupq_n_u8('A')), vdupq_n_u8(26));
    vst1q_u8(out, vaddq_u8(bytes, vandq_u8(upper, vdupq_n_u8(lowercase ? 32 : 0))));
    const uint8x16_t space = vtstq_u8(classes, vdupq_n_u8(kSpaceBits));
    const uint8x16_t control = vbicq_u8(vcltq_u8(bytes, vdupq_n_u8(32)), space);
    const uint8x16_t outside = vorrq_u8(vcgeq_u8(bytes, vdupq_n_u8(128)), vtstq_u8(classes, vdupq_n_u8(kDeleteBit)));
    return {vorrq_u8(control, outside), space, vtstq_u8(classes, vdupq_n_u8(kPunctuationBits))};
}

struct Neon {
    static Classes classify(const uint8_t* in, uint8_t* out, bool lowercase) {
        Quarter q[4];
        for (int k = 0; k < 4; ++k) q[k] = classify_quarter(in + 16 * k, out + 16 * k, lowercase);
        return {mask_of(q[0].other, q[1].other, q[2].other, q[3].other),
                mask_of(q[0].space, q[1].space, q[2].space, q[3].space),
                mask_of(q[0].punctuation, q[1].punctuation, q[2].punctuation, q[3].punctuation)};
    }
    static void positions(uint64_t mask, uint32_t offset, uint32_t* out) { bit_positions(mask, offset, out); }
};

bool runs_here() { return true; }

}  // namespace

extern const Implementation kNeon = {"neon", runs_here, segment<Neon>, md5};

}  // namespace fletcher::wordpiece
