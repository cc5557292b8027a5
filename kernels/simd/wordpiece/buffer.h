// Memory that grows, is not initialized, and is kept for the next text.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <utility>

namespace fletcher::wordpiece {

template <class T>
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(size_t capacity) { reserve(capacity); }
    Buffer(Buffer&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), capacity_(std::exchange(other.capacity_, 0)) {}
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(capacity_, other.capacity_);
        return *this;
    }
    ~Buffer() { std::free(data_); }

    T* data() { return data_; }
    const T* data() const { return data_; }
    size_t capacity() const { return capacity_; }
    T& operator[](size_t k) { return data_[k]; }

    // Room for `capacity` elements; what is there stays.
    void reserve(size_t capacity) {
        if (capacity <= capacity_) return;
        capacity = capacity > capacity_ + capacity_ / 2 ? capacity : capacity_ + capacity_ / 2;
        void* grown = std::realloc(data_, capacity * sizeof(T));
        if (!grown) throw std::bad_alloc();
        data_ = static_cast<T*>(grown);
        capacity_ = capacity;
    }

    // Gives the memory up, to be freed with std::free.
    T* release() {
        capacity_ = 0;
        return std::exchange(data_, nullptr);
    }

    // Frees what is more than `capacity` elements.
    void trim(size_t capacity) {
        if (capacity_ > capacity) *this = Buffer();
    }

  private:
    T* data_ = nullptr;
    size_t capacity_ = 0;
};

}  // namespace fletcher::wordpiece
