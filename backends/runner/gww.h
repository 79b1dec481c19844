// Reading GWW1 and GWW2 tensor files, and writing the former; backends/weights.py documents the layout.
#pragma once

#include <dlpack/dlpack.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "coding.h"
#include "lossless.h"
#include "narrow.h"

namespace gww {

constexpr uint64_t kAlignment = 64;

// A file in memory: private pages, so that nobody's writes reach the disk.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path) : path_(path) {
    int file = open(path.c_str(), O_RDONLY);
    struct stat info {};
    if (file < 0 || fstat(file, &info) != 0) throw std::runtime_error("cannot read " + path);
    size_ = static_cast<size_t>(info.st_size);
    data_ = mmap(nullptr, size_ ? size_ : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    close(file);
    if (data_ == MAP_FAILED) throw std::runtime_error("cannot map " + path);
  }
  ~MappedFile() { munmap(data_, size_ ? size_ : 1); }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  char* at(uint64_t offset, uint64_t bytes) const {
    if (offset > size_ || bytes > size_ - offset) throw std::runtime_error(path_ + " is truncated");
    return static_cast<char*>(data_) + offset;
  }
  template <typename T>
  T get(uint64_t offset) const {
    T value;
    std::memcpy(&value, at(offset, sizeof(T)), sizeof(T));
    return value;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  void* data_ = nullptr;
  size_t size_ = 0;
};

struct Tensor {
  DLDataType dtype;
  std::vector<int64_t> shape;
  char* data;
  uint64_t bytes;
  std::shared_ptr<char> memory = nullptr;  // Where `data` lies, unless that is in the file.
};

constexpr uint32_t kMaxRank = 32;
constexpr uint64_t kLeastEntry = 5;  // Bytes of what stands for a tensor in a GWW2 file.

inline uint64_t Aligned(uint64_t offset) { return (offset + kAlignment - 1) / kAlignment * kAlignment; }

// Bytes of a tensor, if its type and sizes are possible ones; a file may say anything.
inline bool SizeOf(const Tensor& tensor, uint64_t* bytes) {
  const DLDataType& type = tensor.dtype;
  if (type.lanes != 1 || (type.bits != 8 && type.bits != 16 && type.bits != 32 && type.bits != 64)) return false;
  *bytes = type.bits / 8;
  bool empty = false;
  for (int64_t size : tensor.shape) {
    if (size < 0) return false;
    empty = empty || size == 0;
    if (size && __builtin_mul_overflow(*bytes, static_cast<uint64_t>(size), bytes)) return false;
  }
  if (empty) *bytes = 0;
  return *bytes <= INT64_MAX;
}

// The tensors of a file, in place as far as they are not coded or packed; they live as long as the mapping. Nothing
// that the file says is believed before it has been held against the file's size.
inline std::vector<Tensor> Read(const MappedFile& file) {
  const auto damaged = [&file] { return std::runtime_error(file.path() + " is damaged"); };
  const bool compact = std::memcmp(file.at(0, 4), "GWW2", 4) == 0;
  if (!compact && std::memcmp(file.at(0, 4), "GWW1", 4) != 0) throw std::runtime_error(file.path() + " is no GWW1 or GWW2 file");
  const uint64_t count = file.get<uint32_t>(4);
  file.at(8, (compact ? kLeastEntry : 24) * count);
  uint64_t position = 8;
  const auto varint = [&file, &position, &damaged] {
    uint64_t number = 0;
    for (uint32_t place = 0;; ++place) {
      const auto byte = file.get<uint8_t>(position++);
      if (place == 9 && byte > 1) throw damaged();
      number |= static_cast<uint64_t>(byte & 0x7f) << (7 * place);
      if (byte < 0x80) return number;
    }
  };
  std::vector<Tensor> tensors(count);
  std::vector<uint64_t> offsets;
  for (Tensor& tensor : tensors) {
    uint64_t code = 0, bits = 0, rank = 0, lanes = 1;
    if (compact) {
      code = varint();
      bits = varint();
      rank = varint();
      offsets.push_back(varint());
      tensor.bytes = varint();
    } else {
      code = file.get<uint8_t>(position);
      bits = file.get<uint8_t>(position + 1);
      lanes = file.get<uint16_t>(position + 2);
      rank = file.get<uint32_t>(position + 4);
      offsets.push_back(file.get<uint64_t>(position + 8));
      tensor.bytes = file.get<uint64_t>(position + 16);
      position += 24;
    }
    if (rank > kMaxRank || code > 255 || bits > 255) throw damaged();
    tensor.dtype = {static_cast<uint8_t>(code), static_cast<uint8_t>(bits), static_cast<uint16_t>(lanes)};
    for (uint64_t axis = 0; axis < rank; ++axis) {
      tensor.shape.push_back(compact ? static_cast<int64_t>(varint()) : file.get<int64_t>(position));
      position += compact ? 0 : 8;
    }
  }
  const uint64_t base = compact ? Aligned(position) : 0;
  for (size_t index = 0; index < count; ++index) {
    Tensor& tensor = tensors[index];
    uint64_t offset = 0;
    if (__builtin_add_overflow(base, offsets[index], &offset)) throw damaged();
    const bool coded = tensor.dtype.code == kCoded, narrow = tensor.dtype.code == kNarrow;
    const bool packed = tensor.dtype.code >= kPacked;
    if (coded) tensor.dtype.code = tensor.dtype.bits == 16 ? kDLUInt : kDLFloat;
    if (narrow) tensor.dtype.code = kDLInt;
    if (packed) tensor.dtype.code = static_cast<uint8_t>(tensor.dtype.code - kPacked);
    uint64_t expected = 0;
    if (!SizeOf(tensor, &expected) || (!packed && offset % kAlignment)) throw damaged();
    if (coded && tensor.dtype.bits != 32 && tensor.dtype.bits != 16) throw damaged();
    if (narrow && tensor.dtype.bits != 8) throw damaged();
    if (coded || narrow || packed) {
      const char* payload = file.at(offset, tensor.bytes);
      const bool split = coded && tensor.dtype.bits == 16;
      const auto restore = split ? RestoreSplit : coded ? RestoreCoded : RestoreNarrow;
      tensor.memory = packed ? RestorePacked(payload, tensor.bytes, expected, tensor.dtype.bits)
                             : restore(payload, tensor.bytes, expected);
      tensor.data = tensor.memory.get();
      tensor.bytes = expected;
      continue;
    }
    if (expected != tensor.bytes) throw damaged();
    tensor.data = file.at(offset, tensor.bytes);
  }
  return tensors;
}

inline void Write(const std::string& path, const std::vector<Tensor>& tensors) {
  std::ofstream file(path, std::ios::binary);
  auto put = [&file](auto value) { file.write(reinterpret_cast<const char*>(&value), sizeof(value)); };
  uint64_t header = 8;
  for (const Tensor& tensor : tensors) header += 24 + 8 * tensor.shape.size();
  file.write("GWW1", 4);
  put(static_cast<uint32_t>(tensors.size()));
  uint64_t offset = Aligned(header);
  for (const Tensor& tensor : tensors) {
    put(tensor.dtype.code);
    put(tensor.dtype.bits);
    put(tensor.dtype.lanes);
    put(static_cast<uint32_t>(tensor.shape.size()));
    put(offset);
    put(tensor.bytes);
    for (int64_t size : tensor.shape) put(size);
    offset = Aligned(offset + tensor.bytes);
  }
  for (const Tensor& tensor : tensors) {
    auto here = static_cast<uint64_t>(file.tellp());
    file.write(std::string(Aligned(here) - here, '\0').data(), static_cast<std::streamsize>(Aligned(here) - here));
    file.write(tensor.data, static_cast<std::streamsize>(tensor.bytes));
  }
  auto end = static_cast<uint64_t>(file.tellp());
  file.write(std::string(Aligned(end) - end, '\0').data(), static_cast<std::streamsize>(Aligned(end) - end));
  file.flush();
  if (!file) throw std::runtime_error("cannot write " + path);
}

}  // namespace gww
