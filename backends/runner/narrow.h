// Restoring int8 weights of at most 16 levels; backends/narrow_integers.py documents the layout.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>

#include "prefix_codes.h"

namespace gww {

constexpr uint8_t kNarrow = 193;
constexpr uint64_t kNarrowHead = 20;

// `expected` int8 numbers in memory of their own that programs can read in place.
inline std::shared_ptr<char> RestoreNarrow(const char* data, uint64_t bytes, uint64_t expected) {
  if (bytes < kNarrowHead) throw std::runtime_error("a narrow tensor is truncated");
  const auto* head = reinterpret_cast<const uint8_t*>(data);
  const uint32_t levels = head[0];
  const bool prefixed = head[1];
  if (levels < 2 || levels > 16 || head[1] > 1 || head[2] || head[3]) {
    throw std::runtime_error("a narrow tensor has an impossible number of levels");
  }
  std::vector<uint8_t> numbers;
  uint32_t per_byte = 1, values = levels;
  for (; values * levels <= 256; values *= levels) ++per_byte;
  const uint64_t codes = expected / per_byte + (expected % per_byte != 0);
  uint64_t length = codes;
  if (prefixed) numbers = ReadCodes(data + kNarrowHead, bytes - kNarrowHead, expected, levels, &length);
  if (bytes - kNarrowHead != length) throw std::runtime_error("a narrow tensor contradicts its own size");
  auto* memory = static_cast<char*>(std::aligned_alloc(64, (expected + 127) / 64 * 64));
  if (!memory) throw std::bad_alloc();
  std::shared_ptr<char> owned(memory, std::free);
  if (prefixed) {
    for (uint64_t i = 0; i < expected; ++i) memory[i] = data[4 + numbers[i]];
    return owned;
  }
  char table[256][8];
  for (uint32_t byte = 0; byte < values; ++byte) {
    uint32_t rest = byte;
    for (uint32_t i = 0; i < per_byte; ++i, rest /= levels) table[byte][i] = data[4 + rest % levels];
  }
  uint64_t at = 0;
  for (uint64_t i = 0; i < codes; ++i) {
    const auto byte = static_cast<uint8_t>(data[kNarrowHead + i]);
    if (byte >= values) throw std::runtime_error("a narrow tensor has codes beyond its levels");
    const uint64_t count = expected - at < per_byte ? expected - at : per_byte;
    std::memcpy(memory + at, table[byte], count);
    at += count;
  }
  return owned;
}

}  // namespace gww
