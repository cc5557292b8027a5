#include "team.h"

#include <immintrin.h>

#include <chrono>
#include <system_error>
#include <thread>

namespace fletcher::encoder {

namespace {

// How long a helper looks for the next batch before it sleeps: a caller of short texts comes back within this time, and
// to wake takes half of it.
constexpr std::chrono::microseconds kPatience{100};

// Waits for another core, which is about to write. After some 50 us, longer than a piece of a short text takes, it may
// well be that the system does not run the other thread: perhaps it waits for this core. Linux takes a whole slice from
// who yields, so that is not done sooner.
class Spin {
 public:
  void operator()() {
    if (++turns_ < 5000)
      _mm_pause();
    else
      std::this_thread::yield();
  }

 private:
  int turns_ = 0;
};

}  // namespace

Team::Team(int threads) : state_(std::make_shared<State>()), threads_(threads) {}

Team::~Team() {
  state_->closed = true;
  wake();
}

void Team::wake() {
  state_->shift += 2;
  state_->shift.notify_all();
}

// Does pieces of the step at hand until there are none left, and counts them. A piece is taken and known to be there in
// one operation: a step ends only when all that were taken are done, so what a taker then reads is its own step's.
int Team::State::take(int member) {
  int taken = 0;
  for (;; ++taken) {
    const std::uint64_t at = step.fetch_add(1, std::memory_order_acq_rel);
    if (std::uint32_t(at) >= at >> 32) return taken;
    piece(context, int(std::uint32_t(at)), member);
  }
}

void Team::State::help(int member) {
  while (!closed) {
    const std::uint32_t now = shift;
    if (now % 2 == 0) {
      const auto end = std::chrono::steady_clock::now() + kPatience;
      while (shift == now && std::chrono::steady_clock::now() < end) _mm_pause();
      shift.wait(now);
      continue;
    }
    for (Spin spin; shift == now; spin()) {
      const std::uint64_t at = step.load(std::memory_order_relaxed);
      if (std::uint32_t(at) >= at >> 32) continue;
      helped.fetch_add(take(member), std::memory_order_release);
      spin = Spin();
    }
  }
}

Lead::Lead(Team* team) {
  if (team == nullptr || team->threads_ == 1 || team->state_->led.exchange(true, std::memory_order_acquire)) return;
  state_ = team->state_.get();
  members_ = team->threads_;
  if (!state_->started) {
    state_->started = true;
    try {
      for (int member = 1; member < members_; ++member)
        std::thread([state = team->state_, member] { state->help(member); }).detach();
    } catch (const std::system_error&) {  // the system has no more threads for us: fewer help
    }
  }
  ++state_->shift;
  state_->shift.notify_all();
}

Lead::~Lead() {
  if (state_ == nullptr) return;
  ++state_->shift;
  state_->led.store(false, std::memory_order_release);
}

void Lead::run(int pieces, void (*piece)(const void*, int, int), const void* context) {
  state_->piece = piece;
  state_->context = context;
  state_->helped.store(0, std::memory_order_relaxed);
  state_->step.store(std::uint64_t(pieces) << 32, std::memory_order_release);
  const int left = pieces - state_->take(0);
  for (Spin spin; state_->helped.load(std::memory_order_acquire) != left; spin()) {
  }
}

}  // namespace fletcher::encoder
