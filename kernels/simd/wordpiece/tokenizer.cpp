#include "tokenizer.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <thread>

namespace fletcher::wordpiece {
namespace {

// Positions in a text are 32-bit numbers, also after normalizing, which makes it three times as long at most.
constexpr size_t kLargestText = size_t{1} << 30;
constexpr int64_t kTooLarge = -1;

constexpr size_t kRowCost = 32;          // bytes of text that take as long as what a row takes by itself
constexpr size_t kSmallestTask = 1 << 15;

const Implementation* choose(const std::string& name) {
    for (const Implementation* each : compiled_implementations()) {
        if ((name.empty() || name == each->name) && each->runs_here()) return each;
    }
    throw std::invalid_argument("implementation '" + name + "' does not run on this processor");
}

size_t tokenize(const Vocabulary* vocabulary, const uint8_t* word, size_t size, int32_t* out) {
    return vocabulary->tokenize(word, size, out);
}

void reserve_ids(Scratch& scratch, size_t more) { scratch.ids.reserve(more); }

// Keeps `room` of the ids after `begin`.
void cut(Ids& ids, size_t begin, size_t room, bool keep_tail) {
    const size_t count = ids.size - begin;
    if (count <= room) return;
    int32_t* first = ids.buffer.data() + begin;
    if (keep_tail) std::memmove(first, first + (count - room), room * sizeof(int32_t));
    ids.size = begin + room;
}

}  // namespace

Tokenizer::Tokenizer(const Configuration& configuration, const std::string& implementation)
    : implementation_(choose(implementation)),
      normalizer_(configuration.normalizer),
      table_(configuration.normalizer),
      plain_table_({false, false, false, false}),
      vocabulary_(configuration.vocabulary, configuration.continuing_prefix, configuration.unknown,
                  configuration.max_characters),
      added_(configuration.added),
      added_normalized_(configuration.added_normalized),
      prefix_(configuration.prefix),
      suffix_(configuration.suffix),
      context_(context(table_)),
      plain_context_(context(plain_table_)) {}

std::vector<const char*> Tokenizer::implementations() {
    std::vector<const char*> names;
    for (const Implementation* each : compiled_implementations()) {
        if (each->runs_here()) names.push_back(each->name);
    }
    return names;
}

Context Tokenizer::context(const CharTable& table) const {
    return {table.pages(),     table.entries(), table.expansions(), table.sequences(), table.lowercases(),
            &vocabulary_, tokenize,        reserve_ids};
}

std::string Tokenizer::normalize(std::string_view text) const {
    std::vector<uint8_t> out;
    if (normalizer_.append(reinterpret_cast<const uint8_t*>(text.data()), text.size(), out) != text.size()) {
        throw std::invalid_argument("the text is not valid UTF-8");
    }
    return {out.begin(), out.end()};
}

Outcome Tokenizer::run_segment(const Context& context, uint32_t growth, const uint8_t* text, size_t size,
                               Scratch& scratch) const {
    scratch.letters.reserve(size * growth + Scratch::kPadding);
    return implementation_->segment(context, scratch, text, size);
}

// Appends the ids of the added tokens of `text`, and by `encode` those of what lies between them.
template <class Encode>
Outcome Tokenizer::encode_between(const AddedTokens& added, const uint8_t* text, size_t size, Scratch& scratch,
                                  Encode encode) const {
    size_t from = 0, taken = 0;
    AddedTokens::Match match;
    while (!added.empty() && added.find(text, size, from, taken, match)) {
        if (taken < match.begin) {
            const Outcome outcome = encode(text + taken, match.begin - taken);
            if (outcome.kind != Outcome::kDone) return {outcome.kind, outcome.at + taken};
        }
        scratch.ids.push(match.id);
        taken = match.end;
    }
    if (taken == size) return {Outcome::kDone, 0};
    const Outcome outcome = encode(text + taken, size - taken);
    return {outcome.kind, outcome.at + taken};
}

// Text between added tokens.
Outcome Tokenizer::encode_piece(const uint8_t* text, size_t size, Scratch& scratch) const {
    if (added_normalized_.empty()) {
        const size_t before = scratch.ids.size;
        const Outcome outcome = run_segment(context_, table_.growth(), text, size, scratch);
        if (outcome.kind != Outcome::kReorders) return outcome;
        scratch.ids.size = before;
    }
    scratch.normalized.clear();
    const size_t valid = normalizer_.append(text, size, scratch.normalized);
    if (valid < size) return {Outcome::kInvalid, valid};
    return encode_between(added_normalized_, scratch.normalized.data(), scratch.normalized.size(), scratch,
                          [&](const uint8_t* part, size_t length) {
                              return run_segment(plain_context_, 1, part, length, scratch);
                          });
}

Outcome Tokenizer::encode_text(const Request& request, const Text& text, Scratch& scratch) const {
    const uint8_t* data = text.data;
    size_t size = text.size;
    if (!request.prompt.empty()) {
        size += request.prompt.size();
        scratch.text.reserve(size);
        std::memcpy(scratch.text.data(), request.prompt.data(), request.prompt.size());
        std::memcpy(scratch.text.data() + request.prompt.size(), text.data, text.size);
        data = scratch.text.data();
    }
    return encode_between(added_, data, size, scratch, [&](const uint8_t* part, size_t length) {
        return encode_piece(part, length, scratch);
    });
}

// One call of `encode`: threads take tasks, runs of rows of about equal bytes, until there are none left.
struct Tokenizer::Run {
    struct Task {
        size_t begin, end;              // rows
        size_t worker = 0, first_id = 0, ids = 0;  // where its ids lie: in which worker's scratch
        std::vector<InvalidText> invalid{};
    };

    const Tokenizer& tokenizer;
    const Request& request;
    Result& result;
    std::vector<Task> tasks;
    std::vector<std::unique_ptr<Scratch>> scratches;
    std::atomic<size_t> next_task{0};
    std::exception_ptr failure;
    std::mutex failure_mutex;

    Run(const Tokenizer& of, const Request& asked, Result& into) : tokenizer(of), request(asked), result(into) {
        plan();
        const size_t workers = std::clamp<size_t>(static_cast<size_t>(std::max(request.threads, 1)), 1, tasks.size());
        for (size_t k = 0; k < workers; ++k) scratches.push_back(tokenizer.take_scratch());
    }

    ~Run() {
        for (auto& scratch : scratches) tokenizer.give_back(std::move(scratch));
    }

    void plan() {
        size_t total = 0;
        for (const Text& text : request.texts) total += text.size + kRowCost;
        const size_t share = total / (8 * static_cast<size_t>(std::max(request.threads, 1)));
        const size_t target = request.threads > 1 ? std::max(kSmallestTask, share) : total + 1;
        size_t begin = 0, bytes = 0;
        for (size_t row = 0; row < request.texts.size(); ++row) {
            bytes += request.texts[row].size + kRowCost;
            if (bytes >= target || row + 1 == request.texts.size()) {
                tasks.push_back({begin, row + 1});
                begin = row + 1;
                bytes = 0;
            }
        }
        if (tasks.empty()) tasks.push_back({0, 0});
    }

    void work(size_t worker) {
        try {
            for (size_t k; (k = next_task.fetch_add(1)) < tasks.size();) encode_rows(tasks[k], worker);
        } catch (...) {
            const std::lock_guard lock(failure_mutex);
            failure = std::current_exception();
            next_task = tasks.size();
        }
    }

    void encode_rows(Task& task, size_t worker) {
        Scratch& scratch = *scratches[worker];
        Ids& ids = scratch.ids;
        task.worker = worker;
        task.first_id = ids.size;
        if (request.digests) {
            tokenizer.implementation_->md5(request.texts.data() + task.begin, task.end - task.begin,
                                           result.digests.data() + 16 * task.begin);
        }
        for (size_t row = task.begin; row < task.end; ++row) {
            const size_t first = ids.size;
            const size_t count = request.texts[row].data ? encode_row(row, scratch, task) : 0;
            result.token_counts[row] = static_cast<int32_t>(count);
            result.offsets[row + 1] = static_cast<int64_t>(ids.size - first);
        }
        task.ids = ids.size - task.first_id;
    }

    // Returns how many tokens the text has before it is cut.
    size_t encode_row(size_t row, Scratch& scratch, Task& task) {
        const Text& text = request.texts[row];
        Ids& ids = scratch.ids;
        const size_t first = ids.size;
        const size_t special = request.special_tokens ? tokenizer.prefix_.size() + tokenizer.suffix_.size() : 0;
        if (request.special_tokens) {
            for (const int32_t id : tokenizer.prefix_) ids.push(id);
        }
        const size_t bare = ids.size;
        Outcome outcome{Outcome::kInvalid, 0};
        const bool too_large = text.size > kLargestText;
        if (!too_large) outcome = tokenizer.encode_text(request, text, scratch);
        if (outcome.kind != Outcome::kDone) {
            const auto at = static_cast<int64_t>(outcome.at) - static_cast<int64_t>(request.prompt.size());
            task.invalid.push_back({row, too_large ? kTooLarge : std::max<int64_t>(at, 0)});
            ids.size = first;
            return 0;
        }
        const size_t count = ids.size - bare + special;
        if (request.max_length >= 0) {
            cut(ids, bare, static_cast<size_t>(request.max_length) - special, request.keep_tail);
        }
        if (request.special_tokens) {
            for (const int32_t id : tokenizer.suffix_) ids.push(id);
        }
        return count;
    }

    // Puts the tasks' ids in the order of the rows.
    void gather() {
        for (size_t row = 0; row < request.texts.size(); ++row) result.offsets[row + 1] += result.offsets[row];
        result.size = static_cast<size_t>(result.offsets[request.texts.size()]);
        result.ids.reserve(std::max<size_t>(result.size, 1));
        int32_t* out = result.ids.data();
        for (const Task& task : tasks) {
            if (task.ids) {
                std::memcpy(out, scratches[task.worker]->ids.buffer.data() + task.first_id, task.ids * sizeof(int32_t));
            }
            out += task.ids;
            result.invalid.insert(result.invalid.end(), task.invalid.begin(), task.invalid.end());
        }
    }
};

Result Tokenizer::encode(const Request& request) const {
    const size_t special = request.special_tokens ? prefix_.size() + suffix_.size() : 0;
    if (request.max_length >= 0 && static_cast<size_t>(request.max_length) < special) {
        throw std::invalid_argument("max_length " + std::to_string(request.max_length) + " is less than the " +
                                    std::to_string(special) + " special tokens of a text");
    }
    Result result;
    const size_t count = request.texts.size();
    result.offsets.reserve(count + 1);
    result.offsets[0] = 0;
    result.token_counts.reserve(std::max<size_t>(count, 1));
    if (request.digests) result.digests.reserve(std::max<size_t>(16 * count, 1));
    Run run(*this, request, result);
    std::vector<std::thread> threads;
    threads.reserve(run.scratches.size());
    for (size_t worker = 1; worker < run.scratches.size(); ++worker) {
        try {
            threads.emplace_back([&run, worker] { run.work(worker); });
        } catch (const std::exception&) {  // no more threads to be had: those that are there do it all
            break;
        }
    }
    run.work(0);
    for (std::thread& thread : threads) thread.join();
    if (run.failure) std::rethrow_exception(run.failure);
    run.gather();
    return result;
}

std::unique_ptr<Scratch> Tokenizer::take_scratch() const {
    const std::lock_guard lock(idle_mutex_);
    if (idle_.empty()) return std::make_unique<Scratch>();
    auto scratch = std::move(idle_.back());
    idle_.pop_back();
    return scratch;
}

void Tokenizer::give_back(std::unique_ptr<Scratch> scratch) const {
    scratch->ids.size = 0;
    scratch->trim();
    const std::lock_guard lock(idle_mutex_);
    idle_.push_back(std::move(scratch));
}

}  // namespace fletcher::wordpiece
