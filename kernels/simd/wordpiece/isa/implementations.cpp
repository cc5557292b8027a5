// The one place that knows which instruction sets there are.
#include "../segment_call.h"

namespace fletcher::wordpiece {

extern const Implementation kAvx512, kAvx2, kNeon, kScalar;

std::span<const Implementation* const> compiled_implementations() {
    static constexpr const Implementation* kCompiled[] = {
#if defined(__x86_64__)
        &kAvx512, &kAvx2,
#elif defined(__aarch64__)
        &kNeon,
#endif
        &kScalar};
    return kCompiled;
}

}  // namespace fletcher::wordpiece
