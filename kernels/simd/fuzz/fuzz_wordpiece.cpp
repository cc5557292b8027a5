// A libFuzzer target: every implementation that runs here must give what the reference gives, read no byte that is not
// its own, and give the same once more when its caches know the words. run_corpus.cpp runs it without libFuzzer.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>

#include "../arrow/texts.h"
#include "../wordpiece/char_table.h"
#include "../wordpiece/segment_call.h"
#include "arrays.h"
#include "configurations.h"
#include "input.h"
#include "reference.h"

namespace fletcher::fuzz {
namespace {

using wordpiece::Text;
using wordpiece::Tokenizer;

// A configuration with all that is made of it. Making it takes longer than an input, so it is kept.
struct Subject {
    explicit Subject(size_t index)
        : configuration(fuzz::configuration(index)),
          reference(configuration),
          table(configuration.normalizer),
          vocabulary(configuration.vocabulary, configuration.continuing_prefix, configuration.unknown,
                     configuration.max_characters) {
        for (const char* name : Tokenizer::implementations()) {
            tokenizers.push_back(std::make_unique<Tokenizer>(configuration, name));
        }
    }

    const wordpiece::Configuration configuration;
    const Reference reference;
    std::vector<std::unique_ptr<Tokenizer>> tokenizers;
    const wordpiece::CharTable table;
    const wordpiece::Vocabulary vocabulary;
    wordpiece::Scratch scratch;
};

Subject& subject(size_t index) {
    static std::map<size_t, std::unique_ptr<Subject>> known;
    auto& place = known[index % kConfigurations];
    if (!place) place = std::make_unique<Subject>(index % kConfigurations);
    return *place;
}

void print_bytes(const char* name, Bytes bytes) {
    std::fprintf(stderr, "%s (%zu bytes): ", name, bytes.size());
    for (const uint8_t byte : bytes) {
        std::fprintf(stderr, byte >= 32 && byte < 127 && byte != '\\' ? "%c" : "\\x%02x", byte);
    }
    std::fprintf(stderr, "\n");
}

void print_ids(const char* name, std::span<const int32_t> ids) {
    std::fprintf(stderr, "%s (%zu ids):", name, ids.size());
    for (const int32_t id : ids) std::fprintf(stderr, " %d", id);
    std::fprintf(stderr, "\n");
}

struct Case {
    Bytes data;  // as the fuzzer gave it
    const Input& input;
    Subject& subject;
    std::vector<Text> texts;  // each in a block of memory of its very size

    [[noreturn]] void fail(const char* implementation, const char* what, const Text& text = {nullptr, 0}) const {
        std::fprintf(stderr, "\n%s: %s\n", implementation, what);
        std::fprintf(stderr, "configuration %zu, special_tokens %d, keep_tail %d, max_length %lld, prompt '%.*s'\n",
                     input.configuration % kConfigurations, input.special_tokens, input.keep_tail,
                     static_cast<long long>(input.max_length), static_cast<int>(input.prompt.size()),
                     input.prompt.data());
        if (text.data) print_bytes("text", {text.data, text.size});
        print_bytes("input", data);
        std::abort();
    }

    void expect(bool holds, const char* implementation, const char* what, const Text& text = {nullptr, 0}) const {
        if (!holds) fail(implementation, what, text);
    }

    void expect_ids(std::span<const int32_t> ids, std::span<const int32_t> expected, const char* implementation,
                    const Text& text) const {
        if (std::equal(ids.begin(), ids.end(), expected.begin(), expected.end())) return;
        print_ids("ids", ids);
        print_ids("expected", expected);
        fail(implementation, "other ids than the reference", text);
    }
};

// The texts where they lie in an Arrow array.
std::vector<Text> in_array(const Case& of, const ArrayOfTexts& array) {
    std::vector<Text> texts;
    arrow::append_texts(array.schema, array.array, texts);
    of.expect(texts.size() == of.texts.size(), "append_texts", "another number of rows");
    for (size_t row = 0; row < texts.size(); ++row) {
        const Text &text = texts[row], &expected = of.texts[row];
        of.expect(!text.data == !expected.data && text.size == expected.size, "append_texts", "another size", expected);
        const bool same = !text.data || Bytes(text.data, text.size) == Bytes(expected.data, expected.size);
        of.expect(same, "append_texts", "other bytes", expected);
    }
    return texts;
}

// The hot loop by itself, with buffers no larger than its contract asks for: those of a tokenizer have grown with
// earlier texts.
void check_segments(const Case& of) {
    using namespace wordpiece;
    const CharTable& table = of.subject.table;
    const auto tokenize = [](const Vocabulary* vocabulary, const uint8_t* word, size_t size, int32_t* out) {
        return vocabulary->tokenize(word, size, out);
    };
    const auto reserve = [](Scratch& scratch, size_t more) { scratch.ids.reserve(more); };
    const Context context{table.pages(),      table.entries(),        table.expansions(), table.sequences(),
                          table.lowercases(), &of.subject.vocabulary, tokenize,           reserve};
    for (const Text& text : of.texts) {
        if (!text.data) continue;
        std::vector<uint8_t> normalized;
        Normalizer(of.subject.configuration.normalizer).append(text.data, text.size, normalized);
        const size_t valid = valid_bytes({text.data, text.size});
        std::vector<int32_t> expected;
        if (valid == text.size) of.subject.reference.append_words({normalized.data(), normalized.size()}, expected);
        for (const Implementation* each : compiled_implementations()) {
            if (!each->runs_here()) continue;
            Scratch& scratch = of.subject.scratch;
            scratch.letters = Buffer<uint8_t>(text.size * table.growth() + Scratch::kPadding);
            scratch.ids.buffer = Buffer<int32_t>();
            scratch.ids.size = 0;
            const Outcome outcome = each->segment(context, scratch, text.data, text.size);
            if (outcome.kind == Outcome::kDone) {
                of.expect(valid == text.size, each->name, "the segment was done, but is not valid", text);
                of.expect_ids({scratch.ids.buffer.data(), scratch.ids.size}, expected, each->name, text);
            } else if (outcome.kind == Outcome::kInvalid) {
                of.expect(outcome.at == valid, each->name, "another first invalid byte in a segment", text);
            } else {
                of.expect(of.subject.configuration.normalizer.strip_accents, each->name, "reorders nothing", text);
            }
        }
    }
}

void check_result(const Case& of, const char* name, const wordpiece::Request& request, const wordpiece::Result& result,
                  const std::vector<Row>& rows, const std::vector<Digest>& digests) {
    auto invalid = result.invalid.begin();
    of.expect(result.offsets.data()[0] == 0, name, "the first offset is not 0");
    for (size_t row = 0; row < request.texts.size(); ++row) {
        const Text& text = request.texts[row];
        const Row& expected = rows[row % rows.size()];
        const int64_t begin = result.offsets.data()[row], end = result.offsets.data()[row + 1];
        of.expect(begin <= end && end <= static_cast<int64_t>(result.size), name, "offsets out of order", text);
        if (expected.invalid_at >= 0) {
            const bool found = invalid != result.invalid.end() && invalid->row == row;
            of.expect(found, name, "a text that is not valid is not reported", text);
            of.expect(invalid->at == expected.invalid_at, name, "another first invalid byte", text);
            ++invalid;
        }
        of.expect_ids({result.ids.data() + begin, result.ids.data() + end}, expected.ids, name, text);
        of.expect(result.token_counts.data()[row] == expected.token_count, name, "another token count", text);
        if (!request.digests) continue;
        const bool same = std::memcmp(result.digests.data() + 16 * row, digests[row % rows.size()].data(), 16) == 0;
        of.expect(same, name, "another MD5", text);
    }
    of.expect(invalid == result.invalid.end(), name, "a text is reported that is valid");
    of.expect(result.offsets.data()[request.texts.size()] == static_cast<int64_t>(result.size), name, "ids left over");
}

// So many times the texts that there is work for two threads.
std::vector<Text> repeated(const std::vector<Text>& texts) {
    size_t size = 0;
    for (const Text& text : texts) size += text.size + 32;
    std::vector<Text> many;
    while (!texts.empty() && many.size() * size / texts.size() < 100'000) {
        many.insert(many.end(), texts.begin(), texts.end());
    }
    return many;
}

void check_tokenizers(const Case& of, const std::vector<Text>& again) {
    const Input& input = of.input;
    const auto& configuration = of.subject.configuration;
    const size_t special = input.special_tokens ? configuration.prefix.size() + configuration.suffix.size() : 0;
    const bool too_short = input.max_length >= 0 && static_cast<size_t>(input.max_length) < special;
    const std::vector<Text> first = input.threads > 1 ? repeated(of.texts) : of.texts;
    wordpiece::Request request{first,           input.prompt,  input.special_tokens, input.max_length,
                               input.keep_tail, input.threads, input.digests};
    std::vector<Row> rows;
    std::vector<Digest> digests;
    for (const Text& text : of.texts) {
        if (!too_short) rows.push_back(of.subject.reference.encode(request, text));
        digests.push_back(text.data ? md5({text.data, text.size}) : Digest{});
    }
    for (const auto& tokenizer : of.subject.tokenizers) {
        const char* name = tokenizer->implementation();
        try {
            request.texts = first;
            check_result(of, name, request, tokenizer->encode(request), rows, digests);
            request.texts = again;
            check_result(of, name, request, tokenizer->encode(request), rows, digests);
            of.expect(!too_short, name, "a max_length without room for special tokens is let through");
        } catch (const std::invalid_argument&) {
            of.expect(too_short, name, "a request is rejected");
        }
    }
}

}  // namespace
}  // namespace fletcher::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace fletcher::fuzz;
    const Input input = cut(data, size);
    std::vector<std::unique_ptr<uint8_t[]>> blocks;
    Case of{{data, size}, input, subject(input.configuration), {}};
    for (const auto& text : input.texts) {
        if (!text) {
            of.texts.push_back({nullptr, 0});
            continue;
        }
        blocks.push_back(std::make_unique_for_overwrite<uint8_t[]>(text->size()));
        std::copy(text->begin(), text->end(), blocks.back().get());
        of.texts.push_back({blocks.back().get(), text->size()});
    }
    const ArrayOfTexts array(input.texts, input.layout);
    const std::vector<Text> again = in_array(of, array);
    check_segments(of);
    check_tokenizers(of, again);
    return 0;
}
