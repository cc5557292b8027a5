// MD5 (RFC 1321) of many texts at once, one in each lane of a vector: the store's content hash.
//
// MD5 cannot be made parallel within a text, but texts do not wait for each other. A lane whose text has ended takes the
// next one. Compiled for each instruction set, like segment.h.
#include <cstring>

#include "md5.h"

namespace fletcher::wordpiece {
namespace {

constexpr int kLanes = 16;
typedef uint32_t Lanes __attribute__((vector_size(4 * kLanes)));

// The text of one lane: whole blocks where it lies, then its end with the padding in `tail`.
struct Lane {
    const uint8_t* next = nullptr;
    size_t blocks = 0, tail_blocks = 0, row = 0;
    bool busy = false;
    uint8_t tail[128];

    void start(const Text& text, size_t of_row) {
        row = of_row;
        busy = true;
        next = text.data;
        blocks = text.size / 64;
        const size_t rest = text.size % 64;
        tail_blocks = rest < 56 ? 1 : 2;
        std::memset(tail, 0, sizeof tail);
        if (rest) std::memcpy(tail, text.data + 64 * blocks, rest);
        tail[rest] = 0x80;
        const uint64_t bits = uint64_t{text.size} * 8;
        std::memcpy(tail + 64 * tail_blocks - 8, &bits, 8);
    }

    // The block to digest now; nullptr when the text is through.
    const uint8_t* block() {
        if (!blocks && tail_blocks) {
            next = tail;
            blocks = tail_blocks;
            tail_blocks = 0;
        }
        if (!blocks) return nullptr;
        --blocks;
        next += 64;
        return next - 64;
    }
};

inline void digest_block(uint32_t state[4][kLanes], const uint32_t words[16][kLanes]) {
    const auto load = [](const uint32_t* p) {
        Lanes lanes;
        std::memcpy(&lanes, p, sizeof lanes);
        return lanes;
    };
    const auto turned = [](Lanes x, int by) { return x << by | x >> (32 - by); };
    constexpr int kTurns[4][4] = {{7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}};
    Lanes a = load(state[0]), b = load(state[1]), c = load(state[2]), d = load(state[3]);
    const auto step = [&](Lanes f, int round, int k, int word) {
        const Lanes sum = a + f + md5_constants[16 * round + k] + load(words[word]);
        a = d;
        d = c;
        c = b;
        b += turned(sum, kTurns[round][k % 4]);
    };
    for (int k = 0; k < 16; ++k) step((b & c) | (~b & d), 0, k, k);
    for (int k = 0; k < 16; ++k) step((b & d) | (c & ~d), 1, k, (5 * k + 1) % 16);
    for (int k = 0; k < 16; ++k) step(b ^ c ^ d, 2, k, (3 * k + 5) % 16);
    for (int k = 0; k < 16; ++k) step(c ^ (b | ~d), 3, k, 7 * k % 16);
    const Lanes results[4] = {a, b, c, d};
    for (int k = 0; k < 4; ++k) {
        const Lanes sum = results[k] + load(state[k]);
        std::memcpy(state[k], &sum, sizeof sum);
    }
}

void md5(const Text* texts, size_t count, uint8_t* digests) {
    constexpr uint32_t kInitial[4] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476};
    constexpr uint8_t kIdle[64] = {};
    alignas(64) uint32_t state[4][kLanes] = {};
    alignas(64) uint32_t words[16][kLanes];
    Lane lanes[kLanes];
    size_t row = 0;
    for (bool busy = true; busy;) {
        busy = false;
        for (int n = 0; n < kLanes; ++n) {
            Lane& lane = lanes[n];
            const uint8_t* block = lane.busy ? lane.block() : nullptr;
            if (!block) {
                if (lane.busy) {
                    for (int k = 0; k < 4; ++k) std::memcpy(digests + 16 * lane.row + 4 * k, &state[k][n], 4);
                }
                lane.busy = false;
                for (; row < count && !texts[row].data; ++row) std::memset(digests + 16 * row, 0, 16);
                if (row < count) {
                    lane.start(texts[row], row);
                    ++row;
                    for (int k = 0; k < 4; ++k) state[k][n] = kInitial[k];
                    block = lane.block();
                }
            }
            busy |= lane.busy;
            if (!block) block = kIdle;
            for (int k = 0; k < 16; ++k) std::memcpy(&words[k][n], block + 4 * k, 4);
        }
        if (busy) digest_block(state, words);
    }
}

}  // namespace
}  // namespace fletcher::wordpiece
