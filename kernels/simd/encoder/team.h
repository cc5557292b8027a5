// Threads that help another with its batch.
//
// A step of the batch is cut in pieces, and whoever is free takes the next one. So nobody waits for a helper that wakes
// late, that the system does not run, or that is gone since a fork: the leader does what nobody else does.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace fletcher::encoder {

class Team {
 public:
  // `threads` with the leader; the helpers start with the first batch and sleep when none has come for a while.
  explicit Team(int threads);
  ~Team();  // does not wait for the helpers, of which a forked process has none: each goes as soon as it notices

  // A batch is about to come: who sleeps takes as long to wake as a text takes to be tokenized.
  void wake();

 private:
  friend class Lead;

  // Each on a cache line of its own where one thread waits for what another writes.
  struct State {
    alignas(64) std::atomic<std::uint64_t> step{0};   // pieces << 32 | next piece
    alignas(64) std::atomic<int> helped{0};           // pieces of the step that helpers have done
    alignas(64) std::atomic<std::uint32_t> shift{0};  // odd while there is a leader
    alignas(64) std::atomic<bool> led{false}, closed{false};
    void (*piece)(const void* context, int index, int member) = nullptr;
    const void* context = nullptr;
    bool started = false;

    void help(int member);
    int take(int member);
  };

  std::shared_ptr<State> state_;  // the helpers' too
  int threads_;
};

// A batch's hold of a team. Without a team, or while another batch has it, the thread works alone.
class Lead {
 public:
  explicit Lead(Team* team);
  ~Lead();
  Lead(const Lead&) = delete;

  int members() const { return state_ == nullptr ? 1 : members_; }

  // Calls piece(index, member) once for each index below `pieces` and returns when all are done; `member`, below
  // `members()`, tells apart the threads that are in it. No piece may throw.
  template <typename Piece>
  void share(int pieces, const Piece& piece) {
    if (state_ == nullptr) {
      for (int i = 0; i < pieces; ++i) piece(i, 0);
      return;
    }
    run(pieces, [](const void* context, int i, int member) { (*static_cast<const Piece*>(context))(i, member); }, &piece);
  }

 private:
  void run(int pieces, void (*piece)(const void*, int, int), const void* context);

  Team::State* state_ = nullptr;
  int members_ = 1;
};

}  // namespace fletcher::encoder
