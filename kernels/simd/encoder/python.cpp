// The extension module `fletcher_core.engines.native._encoder`: NumPy arrays in, vectors written into one of them.
#include <cpuid.h>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>

#include "encoder.h"
#include "team.h"

namespace nb = nanobind;
using namespace fletcher::encoder;

namespace {

using Array = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Vectors = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Seconds = nb::ndarray<double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Here, in code for any processor.
bool supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16");
}

bool has_amx() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx >> 22 & 1);  // AMX-BF16
}

const float* data(const std::optional<Array>& array) { return array ? array->data() : nullptr; }

template <typename Kind>
Kind chosen(const std::string& name, std::initializer_list<const char*> names) {
    int index = 0;
    for (const char* known : names) {
        if (name == known) return Kind(index);
        ++index;
    }
    throw std::invalid_argument("unknown: " + name);
}

class Module {
  public:
    // Arrays in the order of `LayerView`; `kept` are those that are read in place.
    Module(nb::dict sizes, std::vector<std::vector<std::optional<Array>>> layers, Array words,
           std::optional<Array> positions, Array norm, Array norm_bias, std::optional<Array> cosines,
           std::optional<Array> sines)
        : kept_(nb::make_tuple(words, positions, norm, norm_bias, cosines, sines)) {
        const auto size = [&](const char* name) { return nb::cast<int>(sizes[name]); };
        const auto word = [&](const char* name) { return nb::cast<std::string>(sizes[name]); };
        shape_ = Shape{size("hidden"), size("layers"), size("heads"), size("intermediate"),
                       nb::cast<bool>(sizes["gated"]),
                       chosen<Activation>(word("activation"), {"gelu", "gelu_tanh", "relu", "silu"}),
                       nb::cast<float>(sizes["epsilon"]), chosen<Pooling>(word("pooling"), {"mean", "cls", "last"}),
                       nb::cast<bool>(sizes["normalize"]), size("dimension")};
        if (!supported()) throw std::runtime_error("this processor has no bfloat16 products of AVX-512");
        if (!covers(shape_)) throw std::invalid_argument("a width of the model is no multiple of 16");
        model_ = ModelView{words.data(), data(positions), norm.data(), norm_bias.data(), data(cosines), data(sines),
                           int(words.shape(0)), size("max_positions"), {}};
        for (const auto& a : layers)
            model_.layers.push_back(LayerView{data(a[0]), data(a[1]), data(a[2]), data(a[3]), data(a[4]), data(a[5]),
                                              data(a[6]), data(a[7]), data(a[8]), data(a[9]), data(a[10]), data(a[11]),
                                              data(a[12])});
        encoder_ = std::make_unique<Encoder>(shape_, model_);
    }

    // At first, and anew in a forked process, which has none of the threads.
    void start(int threads) { team_ = std::make_unique<Team>(std::min(threads, encoder_->largest_team())); }

    void wake() { team_->wake(); }

    void run(Ints ids, Ints starts, Vectors out, bool together, std::optional<Seconds> seconds) const {
        const int n = int(starts.shape(0)) - 1;
        const std::int32_t* start = starts.data();
        if (n < 0 || start[0] != 0 || std::size_t(start[n]) != ids.shape(0) || out.shape(0) != std::size_t(n) ||
            out.shape(1) != std::size_t(shape_.dimension))
            throw std::invalid_argument("the sizes of the batch do not fit one another");
        if (seconds && seconds->shape(0) != model_.layers.size() + 2)
            throw std::invalid_argument("seconds has not one place for each step");
        for (int i = 0; i < n; ++i)
            if (start[i + 1] <= start[i] || start[i + 1] - start[i] > model_.max_positions)
                throw std::invalid_argument("a sequence is empty or longer than the model's positions");
        for (std::size_t t = 0; t < ids.shape(0); ++t)
            if (ids.data()[t] < 0 || ids.data()[t] >= model_.vocabulary)
                throw std::invalid_argument("a token is not in the model's vocabulary");
        nb::gil_scoped_release free;
        encoder_->run(ids.data(), start, n, out.data(), together ? team_.get() : nullptr,
                      seconds ? seconds->data() : nullptr);
    }

  private:
    nb::object kept_;
    Shape shape_{};
    ModelView model_{};
    std::unique_ptr<Encoder> encoder_;
    std::unique_ptr<Team> team_;
};

}  // namespace

NB_MODULE(_encoder, m) {
    m.def("supported", &supported);
    m.def("has_amx", &has_amx);
    nb::class_<Module>(m, "Encoder")
        .def(nb::init<nb::dict, std::vector<std::vector<std::optional<Array>>>, Array, std::optional<Array>, Array, Array,
                      std::optional<Array>, std::optional<Array>>(),
             nb::arg("sizes"), nb::arg("layers"), nb::arg("words"), nb::arg("positions").none(), nb::arg("norm"),
             nb::arg("norm_bias"), nb::arg("cosines").none(), nb::arg("sines").none())
        .def("start", &Module::start, nb::arg("threads"))
        .def("wake", &Module::wake)
        .def("run", &Module::run, nb::arg("ids"), nb::arg("cu_seqlens"), nb::arg("out"), nb::arg("together"),
             nb::arg("seconds") = nb::none());
}
