// Restoring tensors from fewer bits, exactly; backends/lossless.py documents the layout and has the same arithmetic.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

namespace gww {

constexpr uint8_t kPacked = 208;  // DLPack's type code is added to it.

class Lossless {
 public:
  Lossless(const char* data, uint64_t bytes) : at_(data), left_(bytes), all_(bytes) {}

  // Fills `words` with the part that comes next.
  template <typename Word>
  void Part(Word* words, uint64_t count, int deep = 4) {
    uint8_t head[4];
    Take(head, 4);
    if (head[0] == 0) return Range(words, count, head[1], head[2], head[3]);
    if (head[0] != 1 || head[1] || head[2] || head[3] || deep == 0 || sizeof(Word) < 4) {
      throw std::runtime_error("a packed tensor has a part of an unknown kind");
    }
    uint32_t kept;
    uint64_t sizes[3];
    Take(&kept, 4);
    Take(sizes, 24);
    const uint64_t outer = sizes[0], size = sizes[1], inner = sizes[2];
    uint64_t positions, product;
    if (__builtin_mul_overflow(outer, inner, &positions) || __builtin_mul_overflow(positions, size, &product) ||
        product != count || !size || kept < 1 || kept > positions) {
      throw std::runtime_error("a packed tensor contradicts its own size");
    }
    std::vector<Word> vectors(kept * size);
    Part(vectors.data(), vectors.size(), deep - 1);
    std::vector<uint32_t> places(positions);
    Part(places.data(), positions, deep - 1);
    for (uint64_t o = 0; o < outer; ++o) {
      for (uint64_t i = 0; i < inner; ++i) {
        const uint64_t place = places[o * inner + i];
        if (place >= kept) throw std::runtime_error("a packed tensor names a vector that it does not hold");
        for (uint64_t s = 0; s < size; ++s) words[(o * size + s) * inner + i] = vectors[place * size + s];
      }
    }
  }

  uint64_t used() const { return all_ - left_; }

  void End() const {
    if (left_) throw std::runtime_error("a packed tensor is longer than it should be");
  }

 private:
  void Take(void* out, uint64_t bytes) {
    if (bytes > left_) throw std::runtime_error("a packed tensor is truncated");
    std::memcpy(out, at_, bytes);
    at_ += bytes;
    left_ -= bytes;
  }

  template <typename Word>
  void Range(Word* words, uint64_t count, uint32_t bits, uint32_t shift, uint32_t rotated) {
    constexpr uint32_t kWidth = 8 * sizeof(Word);
    uint64_t start;
    Take(&start, 8);
    if (bits + shift > kWidth || rotated > 1 || (kWidth < 64 && start >> (kWidth % 64))) {
      throw std::runtime_error("a packed tensor has offsets wider than its numbers");
    }
    // The words lie in memory, so that this stays in 64 bits.
    const uint64_t length = count / 8 * bits + (count % 8 * bits + 7) / 8;
    if (length > left_) throw std::runtime_error("a packed tensor is truncated");
    const auto* bytes = reinterpret_cast<const uint8_t*>(at_);
    at_ += length;
    left_ -= length;
    uint64_t held = 0;  // Bits that are read ahead, the lowest next.
    uint32_t ready = 0;
    for (uint64_t n = 0; n < count; ++n) {
      uint64_t offset = 0;
      for (uint32_t got = 0; got < bits;) {
        if (!ready) {
          held = *bytes++;
          ready = 8;
        }
        const uint32_t take = bits - got < ready ? bits - got : ready;
        offset |= (held & ((uint64_t{1} << take) - 1)) << got;
        held >>= take;
        ready -= take;
        got += take;
      }
      const uint64_t moved = shift < 64 ? offset << shift : 0;
      auto word = static_cast<Word>(moved + start);
      if (rotated) word = static_cast<Word>(static_cast<Word>(word >> 1) | static_cast<Word>(word << (kWidth - 1)));
      words[n] = word;
    }
  }

  const char* at_;
  uint64_t left_, all_;
};

// Whether a payload can stand for that many bytes.
inline bool CanHold(uint64_t payload, uint64_t expected) {
  constexpr uint64_t kFree = uint64_t{1} << 22, kGrowth = 1024;
  return expected <= kFree || (expected - kFree) / kGrowth <= payload;
}

// The numbers of a tensor of `expected` bytes in memory of their own that programs can read in place.
inline std::shared_ptr<char> RestorePacked(const char* data, uint64_t bytes, uint64_t expected, uint32_t bits) {
  if (!CanHold(bytes, expected)) {
    throw std::runtime_error("a packed tensor stands for more than its payload can hold");
  }
  auto* memory = static_cast<char*>(std::aligned_alloc(64, (expected + 127) / 64 * 64));
  if (!memory) throw std::bad_alloc();
  std::shared_ptr<char> owned(memory, std::free);
  Lossless reader(data, bytes);
  switch (bits) {
    case 8: reader.Part(reinterpret_cast<uint8_t*>(memory), expected); break;
    case 16: reader.Part(reinterpret_cast<uint16_t*>(memory), expected / 2); break;
    case 32: reader.Part(reinterpret_cast<uint32_t*>(memory), expected / 4); break;
    default: reader.Part(reinterpret_cast<uint64_t*>(memory), expected / 8);
  }
  reader.End();
  return owned;
}

}  // namespace gww
