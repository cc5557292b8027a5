#include "trie.h"

#include <algorithm>
#include <queue>
#include <stdexcept>

namespace fletcher::wordpiece {

Trie::Trie(std::vector<Strings> roots) {
    struct Range {  // strings that begin alike, up to `depth`, and the state that stands for their beginning
        const Strings* strings;
        size_t begin, end, depth;
        int32_t state;
    };
    std::queue<Range> queue;
    grow(roots.size() + 1);
    for (size_t k = 0; k < roots.size(); ++k) {
        std::sort(roots[k].begin(), roots[k].end());
        const auto same = [](const auto& a, const auto& b) { return a.first == b.first; };
        const auto twice = std::adjacent_find(roots[k].begin(), roots[k].end(), same);
        if (twice != roots[k].end()) throw std::invalid_argument("'" + twice->first + "' is there twice");
        nodes_[k + 1].parent = 0;  // taken, and no child of any state
        queue.push({&roots[k], 0, roots[k].size(), 0, static_cast<int32_t>(k + 1)});
    }
    std::vector<uint8_t> bytes;
    std::vector<size_t> starts;
    for (; !queue.empty(); queue.pop()) {
        const auto [strings, begin, end, depth, state] = queue.front();
        size_t first = begin;
        if (first < end && (*strings)[first].first.size() == depth) values_[state] = (*strings)[first++].second;
        bytes.clear();
        starts.clear();
        for (size_t k = first; k < end; ++k) {
            const auto byte = static_cast<uint8_t>((*strings)[k].first[depth]);
            if (bytes.empty() || bytes.back() != byte) {
                bytes.push_back(byte);
                starts.push_back(k);
            }
        }
        if (bytes.empty()) continue;
        starts.push_back(end);
        const int32_t base = place(bytes);
        nodes_[state].base = base;
        for (size_t k = 0; k < bytes.size(); ++k) {
            const int32_t child = base + bytes[k];
            nodes_[child].parent = state;
            edges_.push_back({state, child, bytes[k]});
            queue.push({strings, starts[k], starts[k + 1], depth + 1, child});
        }
    }
}

// A base at which the slots of all `bytes` are free. std::string sorts its bytes as unsigned, so they ascend.
int32_t Trie::place(const std::vector<uint8_t>& bytes) {
    while (first_free_ < nodes_.size() && nodes_[first_free_].parent >= 0) ++first_free_;
    for (size_t slot = first_free_;; ++slot) {
        if (slot < nodes_.size() && nodes_[slot].parent >= 0) continue;
        const size_t base = slot - bytes[0];
        grow(base + bytes.back() + 1);
        const bool fits = std::all_of(bytes.begin(), bytes.end(),
                                      [&](uint8_t byte) { return nodes_[base + byte].parent < 0; });
        if (fits) return static_cast<int32_t>(base);
    }
}

void Trie::grow(size_t states) {
    if (states + 256 <= nodes_.size()) return;
    const size_t size = std::max(states + 256, nodes_.size() + nodes_.size() / 2);
    nodes_.resize(size);
    values_.resize(size, kNoValue);
}

}  // namespace fletcher::wordpiece
