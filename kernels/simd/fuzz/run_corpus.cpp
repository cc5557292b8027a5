// The fuzz target without libFuzzer, for any compiler and processor: over files, and over inputs made at random.
//
//   run_corpus [--random COUNT] [--seed SEED] [FILE...]
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "../unicode/utf8.h"
#include "../wordpiece/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

// SplitMix64: the same numbers everywhere.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}

    uint64_t below(uint64_t bound) {
        uint64_t z = state_ += 0x9E3779B97F4A7C15;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
        z = (z ^ z >> 27) * 0x94D049BB133111EB;
        return (z ^ z >> 31) % bound;
    }
    char byte() { return static_cast<char>(below(256)); }

  private:
    uint64_t state_;
};

// A bit of text: mostly what is near to a configuration's tokens, now and then any character, seldom what is not UTF-8.
std::string snippet(Random& random) {
    static constexpr std::string_view kKnown[] = {
        "a", "b", "ab", "abc", "abcde", "cde", "the", "un", "aff", "able", "ing", "in", "xx", "é", "É", "e\u0301",
        "naïve", "ß", "İ", "Σ", "北", "京", "東京", "豈", "한국", "กำ", "नमस्ते", "\U0001f600", "\U0001d165", "\u0323\u0307",
        "e\u1dfb\u302e", "\u00ad", "\u200b", "\u3000", "\u2028", "\u00a0", "ﬁ", "[CLS]", "[MASK]", "[", "]", "<a>",
        "<b>", "\n", "\t", "\x01", "\x7f", ".", ",", "!", "'", "-", "#", "0", "12", "A", "THE", "abcdeabcdeabcde"};
    static constexpr std::string_view kBroken[] = {
        "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xED\xBF\xBF", "\xF0\x8F\xBF\xBF",
        "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xF8\x88\x80\x80", "\x80", "\xC3", "\xE4\xB8", "\xF0\x9F\x98"};
    static const std::string kLong = "abcdeabcdeabcdeabcdeabcdeabcdeabcdeabcde";
    const uint64_t kind = random.below(64);
    if (kind < 20) return " ";
    if (kind < 56) return std::string(kKnown[random.below(std::size(kKnown))]);
    if (kind < 58) return std::string(random.below(70), "a.c \n"[random.below(5)]);
    if (kind < 61) return kLong.substr(0, random.below(40)) + "abc"[random.below(3)];  // alike but for their end
    if (kind == 63 && random.below(8) == 0) return std::string(kBroken[random.below(std::size(kBroken))]);
    if (kind == 62 && random.below(16) == 0) return {random.byte()};
    constexpr uint32_t kEnds[] = {0x80, 0x800, 0x3000, 0xD800, 0x20000, 0x110000};
    uint8_t bytes[4];
    uint32_t code_point;
    do code_point = static_cast<uint32_t>(random.below(kEnds[random.below(std::size(kEnds))]));
    while ((code_point & 0xFFFFF800) == 0xD800);
    return {bytes, bytes + fletcher::unicode::encode(code_point, bytes)};
}

std::string random_input(Random& random) {
    std::string input{random.byte(), random.byte(), random.below(2) ? '\0' : random.byte(), random.byte()};
    for (uint64_t texts = random.below(6); texts-- > 0;) {
        input += static_cast<char>(random.below(4) ? '0' : random.byte());
        const uint64_t most = random.below(8) ? 24 : 300;
        for (uint64_t left = random.below(most); left-- > 0;) input += snippet(random);
        input += '\xFF';
    }
    return input;
}

void run(const std::string& input) {
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
}

}  // namespace

int main(int argc, char** argv) {
    uint64_t count = 0, seed = 1;
    size_t files = 0;
    for (int k = 1; k < argc; ++k) {
        const std::string_view argument = argv[k];
        if (argument == "--random" && k + 1 < argc) {
            count = std::strtoull(argv[++k], nullptr, 10);
        } else if (argument == "--seed" && k + 1 < argc) {
            seed = std::strtoull(argv[++k], nullptr, 10);
        } else {
            std::ifstream file(argv[k], std::ios::binary);
            if (!file) return std::fprintf(stderr, "cannot read %s\n", argv[k]), 2;
            run({std::istreambuf_iterator<char>(file), {}});
            ++files;
        }
    }
    Random random(seed);
    for (uint64_t k = 0; k < count; ++k) run(random_input(random));
    std::printf("%zu files and %llu random inputs (seed %llu) agree with the reference:", files,
                static_cast<unsigned long long>(count), static_cast<unsigned long long>(seed));
    for (const char* name : fletcher::wordpiece::Tokenizer::implementations()) std::printf(" %s", name);
    std::printf("\n");
}
