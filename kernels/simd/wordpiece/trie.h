// A trie of byte strings as a double array (Aoe, 1989): one addition and one comparison a byte.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace fletcher::wordpiece {

class Trie {
  public:
    static constexpr int32_t kNone = 0;      // no such state
    static constexpr int32_t kNoValue = -1;  // no string ends in this state

    using Strings = std::vector<std::pair<std::string, int32_t>>;  // distinct, not empty; values of 0 and more

    struct Edge {
        int32_t parent, child;
        uint8_t byte;
    };

    // One trie for each of `roots`, in one array. Root k is state k + 1. Throws std::invalid_argument where a string
    // stands twice under one root.
    explicit Trie(std::vector<Strings> roots);

    int32_t next(int32_t state, uint8_t byte) const {
        const int32_t child = nodes_[state].base + byte;
        return nodes_[child].parent == state ? child : kNone;
    }
    int32_t value(int32_t state) const { return values_[state]; }
    size_t states() const { return nodes_.size(); }

    // All edges, those nearer to a root first.
    const std::vector<Edge>& edges() const { return edges_; }

  private:
    struct Node {
        int32_t base = 0;
        int32_t parent = -1;
    };

    int32_t place(const std::vector<uint8_t>& bytes);
    void grow(size_t states);

    std::vector<Node> nodes_;  // 256 longer than the last state, so that `next` needs no bound
    std::vector<int32_t> values_;
    std::vector<Edge> edges_;
    size_t first_free_ = 256;  // below it no base would be left for the byte 255
};

}  // namespace fletcher::wordpiece
