// The extension module `fletcher_core.tokenizers._wordpiece`: Python and Arrow objects in, NumPy arrays out.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

#include "arrow/texts.h"
#include "unicode/properties.h"
#include "wordpiece/tokenizer.h"

namespace nb = nanobind;
using namespace fletcher;
using wordpiece::Text;

namespace {

// Texts where they lie in a Python object, and what keeps them there.
class Texts {
  public:
    explicit Texts(nb::handle source) {
        if (nb::hasattr(source, "__arrow_c_array__")) {
            from_arrow_array(source);
        } else if (nb::hasattr(source, "__arrow_c_stream__")) {
            from_arrow_stream(source);
        } else {
            from_sequence(source);
        }
    }
    Texts(const Texts&) = delete;
    ~Texts() {
        for (ArrowArray& chunk : chunks_) {
            if (chunk.release) chunk.release(&chunk);
        }
        if (schema_.release) schema_.release(&schema_);
    }

    const std::vector<Text>& get() const { return texts_; }

  private:
    void from_arrow_array(nb::handle source) {
        const nb::tuple pair = nb::cast<nb::tuple>(source.attr("__arrow_c_array__")());
        kept_.append(pair);
        const auto* schema = static_cast<ArrowSchema*>(PyCapsule_GetPointer(pair[0].ptr(), "arrow_schema"));
        const auto* array = static_cast<ArrowArray*>(PyCapsule_GetPointer(pair[1].ptr(), "arrow_array"));
        if (!schema || !array) throw nb::python_error();
        arrow::append_texts(*schema, *array, texts_);
    }

    void from_arrow_stream(nb::handle source) {
        const nb::object capsule = source.attr("__arrow_c_stream__")();
        auto* stream = static_cast<ArrowArrayStream*>(PyCapsule_GetPointer(capsule.ptr(), "arrow_array_stream"));
        if (!stream) throw nb::python_error();
        const auto check = [&](int code) {
            if (code == 0) return;
            const char* message = stream->get_last_error(stream);
            throw std::runtime_error(message ? message : "the Arrow stream failed");
        };
        check(stream->get_schema(stream, &schema_));
        for (;;) {
            ArrowArray chunk{};
            check(stream->get_next(stream, &chunk));
            if (!chunk.release) return;
            chunks_.push_back(chunk);
            arrow::append_texts(schema_, chunks_.back(), texts_);
        }
    }

    // A tuple holds on to its items whatever another thread does to the list.
    void from_sequence(nb::handle source) {
        const nb::object items = nb::steal(PySequence_Tuple(source.ptr()));
        if (!items.is_valid()) throw nb::python_error();
        kept_.append(items);
        const Py_ssize_t count = PyTuple_Size(items.ptr());
        texts_.reserve(static_cast<size_t>(count));
        for (Py_ssize_t row = 0; row < count; ++row) {
            PyObject* item = PyTuple_GetItem(items.ptr(), row);
            if (!PyUnicode_Check(item)) throw nb::type_error("texts must be str");  // the caller names the one that is not
            texts_.push_back(utf8(item));
        }
    }

    Text utf8(PyObject* item) {
        Py_ssize_t size;
        const char* data = PyUnicode_AsUTF8AndSize(item, &size);
        if (data) return {reinterpret_cast<const uint8_t*>(data), static_cast<size_t>(size)};
        // A lone surrogate. As bytes it is not valid UTF-8, so it will be reported like any other bad text.
        PyErr_Clear();
        const nb::object bytes = nb::steal(PyUnicode_AsEncodedString(item, "utf-8", "surrogatepass"));
        if (!bytes.is_valid()) throw nb::python_error();
        kept_.append(bytes);
        return {reinterpret_cast<const uint8_t*>(PyBytes_AsString(bytes.ptr())),
                static_cast<size_t>(PyBytes_Size(bytes.ptr()))};
    }

    std::vector<Text> texts_;
    nb::list kept_;
    ArrowSchema schema_{};
    std::vector<ArrowArray> chunks_;
};

template <class T, class... Shape>
nb::object to_numpy(wordpiece::Buffer<T>& buffer, Shape... shape) {
    T* data = buffer.release();
    const nb::capsule owner(data, [](void* p) noexcept { std::free(p); });
    const size_t dimensions[] = {shape...};
    return nb::cast(nb::ndarray<nb::numpy, T>(data, sizeof...(shape), dimensions, owner));
}

nb::tuple encode(const wordpiece::Tokenizer& tokenizer, nb::handle source, std::string_view prompt,
                 bool special_tokens, int64_t max_length, bool keep_tail, int threads, bool digests) {
    const Texts texts(source);
    const size_t count = texts.get().size();
    wordpiece::Result result;
    {
        const nb::gil_scoped_release released;
        result = tokenizer.encode({texts.get(), prompt, special_tokens, max_length, keep_tail, threads, digests});
    }
    nb::list invalid;
    for (const auto& [row, at] : result.invalid) invalid.append(nb::make_tuple(row, at));
    nb::object hashes = nb::none();
    if (digests) hashes = to_numpy(result.digests, count, size_t{16});
    return nb::make_tuple(to_numpy(result.ids, result.size), to_numpy(result.offsets, count + 1),
                          to_numpy(result.token_counts, count), hashes, invalid);
}

std::vector<wordpiece::AddedToken> added_tokens(const nb::list& rows) {
    std::vector<wordpiece::AddedToken> tokens;
    for (const nb::handle row : rows) {
        tokens.push_back({nb::cast<std::string>(row[0]), nb::cast<int32_t>(row[1]), nb::cast<bool>(row[2]),
                          nb::cast<bool>(row[3]), nb::cast<bool>(row[4])});
    }
    return tokens;
}

wordpiece::Configuration configuration(const nb::dict& vocabulary, const std::string& continuing_prefix,
                                       int32_t unknown, size_t max_characters, bool clean_text,
                                       bool handle_chinese_chars, bool strip_accents, bool lowercase,
                                       const nb::list& added, const nb::list& added_normalized,
                                       const std::vector<int32_t>& prefix, const std::vector<int32_t>& suffix) {
    wordpiece::Configuration result{{},
                                    continuing_prefix,
                                    unknown,
                                    max_characters,
                                    {clean_text, handle_chinese_chars, strip_accents, lowercase},
                                    added_tokens(added),
                                    added_tokens(added_normalized),
                                    prefix,
                                    suffix};
    for (const auto& [token, id] : vocabulary) {
        result.vocabulary.emplace_back(nb::cast<std::string>(token), nb::cast<int32_t>(id));
    }
    return result;
}

}  // namespace

NB_MODULE(_wordpiece, m) {
    nb::set_leak_warnings(false);  // a tokenizer that is alive when the interpreter ends is no fault of its owner's
    m.attr("REFERENCE_VERSION") = unicode::reference_version();
    m.def("implementations", [] {
        nb::list names;
        for (const char* name : wordpiece::Tokenizer::implementations()) names.append(name);
        return names;
    });
    nb::class_<wordpiece::Tokenizer>(m, "Tokenizer")
        .def(
            "__init__",
            [](wordpiece::Tokenizer* self, const nb::dict& vocabulary, const std::string& continuing_prefix,
               int32_t unknown, size_t max_characters, bool clean_text, bool handle_chinese_chars, bool strip_accents,
               bool lowercase, const nb::list& added, const nb::list& added_normalized,
               const std::vector<int32_t>& prefix, const std::vector<int32_t>& suffix,
               const std::string& implementation) {
                new (self) wordpiece::Tokenizer(
                    configuration(vocabulary, continuing_prefix, unknown, max_characters, clean_text,
                                  handle_chinese_chars, strip_accents, lowercase, added, added_normalized, prefix,
                                  suffix),
                    implementation);
            },
            nb::kw_only(), nb::arg("vocabulary"), nb::arg("continuing_prefix"), nb::arg("unknown"),
            nb::arg("max_characters"), nb::arg("clean_text"), nb::arg("handle_chinese_chars"),
            nb::arg("strip_accents"), nb::arg("lowercase"), nb::arg("added"), nb::arg("added_normalized"),
            nb::arg("prefix"), nb::arg("suffix"), nb::arg("implementation") = "")
        .def_prop_ro("implementation", &wordpiece::Tokenizer::implementation)
        .def("normalize", &wordpiece::Tokenizer::normalize, nb::arg("text"))
        .def("encode", &encode, nb::arg("texts"), nb::kw_only(), nb::arg("prompt") = "",
             nb::arg("special_tokens") = true, nb::arg("max_length") = -1, nb::arg("keep_tail") = false,
             nb::arg("threads") = 1, nb::arg("digests") = false);
}
