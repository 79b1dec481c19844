// Reading codes of few bits whose frequent ones are shorter; backends/prefix_codes.py documents the layout.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

namespace gww {

// `count` words of 1 to 8 bits, the lowest bit first, out of as many bytes as they take.
inline std::vector<uint8_t> UnpackWords(const uint8_t* data, uint64_t bytes, uint64_t count, uint32_t bits) {
  std::vector<uint8_t> words((count + 7) / 8 * 8);
  const auto mask = static_cast<uint8_t>((1u << bits) - 1);
  for (uint64_t n = 0, at = 0; n < count; n += 8, at += bits) {
    uint64_t held = 0;
    if (bytes - at >= sizeof(held)) {
      std::memcpy(&held, data + at, sizeof(held));
    } else {
      std::memcpy(&held, data + at, bytes - at);
    }
    for (uint32_t place = 0; place < 8; ++place) words[n + place] = static_cast<uint8_t>(held >> place * bits) & mask;
  }
  return words;
}

// `count` codes below `levels`; `used` gets the bytes that they took.
inline std::vector<uint8_t> ReadCodes(const char* data, uint64_t bytes, uint64_t count, uint64_t levels, uint64_t* used) {
  const auto* payload = reinterpret_cast<const uint8_t*>(data);
  const uint64_t lists = bytes ? payload[0] : 0;
  if (!lists || levels < 1 || levels > 256 || 1 + lists + levels > bytes) throw std::runtime_error("a coded tensor is truncated");
  const uint8_t* bits = payload + 1;
  const uint8_t* order = bits + lists;
  for (uint64_t i = 0; i < levels; ++i) {
    if (order[i] >= levels) throw std::runtime_error("a coded tensor has codes beyond its levels");
  }
  std::vector<std::vector<uint8_t>> words;
  std::vector<uint64_t> counts, firsts;
  uint64_t at = 1 + lists + levels, first = 0, left = count;
  for (uint64_t i = 0; i < lists; ++i) {
    if (bits[i] < 1 || bits[i] > 8 || first >= levels) throw std::runtime_error("a coded tensor has codes of impossible lengths");
    if (left > bytes * 8) throw std::runtime_error("a coded tensor is truncated");
    const uint64_t size = (left * bits[i] + 7) / 8;
    if (size > bytes - at) throw std::runtime_error("a coded tensor is truncated");
    words.push_back(UnpackWords(payload + at, size, left, bits[i]));
    counts.push_back(left);
    firsts.push_back(first);
    const uint32_t escape = (1u << bits[i]) - 1;
    uint64_t escapes = 0;
    for (uint64_t n = 0; n < left; ++n) escapes += words[i][n] == escape;
    left = escapes;
    first += escape;
    at += size;
  }
  std::vector<uint8_t> codes;
  for (uint64_t i = lists; i-- > 0;) {
    const bool last = i + 1 == lists;
    uint8_t table[256] = {};
    for (uint64_t word = 0; word < 256 && firsts[i] + word < levels; ++word) table[word] = order[firsts[i] + word];
    const uint64_t known = levels - firsts[i], escape = (uint64_t{1} << bits[i]) - 1;
    std::vector<uint8_t> found(counts[i] + 1);  // One more, so that whoever runs out of codes reads nothing else.
    uint64_t next = 0;
    bool beyond = false;
    for (uint64_t n = 0; n < counts[i]; ++n) {
      const uint8_t word = words[i][n];
      const bool escaped = !last && word == escape;
      beyond |= !escaped && word >= known;
      found[n] = escaped ? codes[next] : table[word];
      next += escaped;
    }
    if (beyond) throw std::runtime_error("a coded tensor has codes beyond its levels");
    codes = std::move(found);
  }
  codes.resize(count);
  *used = at;
  return codes;
}

}  // namespace gww
