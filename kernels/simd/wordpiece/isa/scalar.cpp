// Byte by byte, for any processor.
#include "../md5_lanes.h"
#include "../segment.h"
#include "bit_positions.h"

namespace fletcher::wordpiece {
namespace {

struct Scalar {
    static Classes classify(const uint8_t* in, uint8_t* out, bool lowercase) {
        Classes classes{0, 0, 0};
        for (uint32_t k = 0; k < 64; ++k) {
            const uint8_t c = in[k];
            const bool upper = c >= 'A' && c <= 'Z', lower = c >= 'a' && c <= 'z', digit = c >= '0' && c <= '9';
            const bool space = c == ' ' || c == '\t' || c == '\n' || c == '\r';
            const bool other = c >= 127 || (c < 32 && !space);
            out[k] = static_cast<uint8_t>(upper && lowercase ? c + 32 : c);
            classes.other |= uint64_t{other} << k;
            classes.space |= uint64_t{space} << k;
            classes.punctuation |= uint64_t{!(upper || lower || digit || space || other)} << k;
        }
        return classes;
    }
    static void positions(uint64_t mask, uint32_t offset, uint32_t* out) { bit_positions(mask, offset, out); }
};

bool runs_here() { return true; }

}  // namespace

extern const Implementation kScalar = {"scalar", runs_here, segment<Scalar>, md5};

}  // namespace fletcher::wordpiece
