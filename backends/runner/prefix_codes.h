// Reading codes of few bits whose frequent ones are shorter; backends/prefix_codes.py documents the layout.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace gww {

// Words of 1 to 8 bits, the lowest bit first. Whoever asks for them knows that the bytes are there.
class Words {
 public:
  Words(const uint8_t* data, uint32_t bits) : at_(data), bits_(bits) {}

  uint32_t next() {
    if (ready_ < bits_) {
      held_ |= static_cast<uint32_t>(*at_++) << ready_;
      ready_ += 8;
    }
    const uint32_t word = held_ & ((1u << bits_) - 1);
    held_ >>= bits_;
    ready_ -= bits_;
    return word;
  }

 private:
  const uint8_t* at_;
  uint32_t bits_, held_ = 0, ready_ = 0;
};

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
  std::vector<Words> words;
  std::vector<uint64_t> firsts;
  uint64_t at = 1 + lists + levels, first = 0, left = count;
  for (uint64_t i = 0; i < lists; ++i) {
    if (bits[i] < 1 || bits[i] > 8 || first >= levels) throw std::runtime_error("a coded tensor has codes of impossible lengths");
    if (left > bytes * 8) throw std::runtime_error("a coded tensor is truncated");
    const uint64_t size = (left * bits[i] + 7) / 8;
    if (size > bytes - at) throw std::runtime_error("a coded tensor is truncated");
    words.emplace_back(payload + at, bits[i]);
    firsts.push_back(first);
    const uint32_t escape = (1u << bits[i]) - 1;
    uint64_t escapes = 0;
    Words counted(payload + at, bits[i]);
    for (uint64_t n = 0; i + 1 < lists && n < left; ++n) escapes += counted.next() == escape;
    left = escapes;
    first += escape;
    at += size;
  }
  std::vector<uint8_t> codes(count);
  for (uint8_t& code : codes) {
    uint64_t list = 0;
    uint32_t word = words[0].next();
    while (list + 1 < lists && word == (1u << bits[list]) - 1) word = words[++list].next();
    if (word >= levels - firsts[list]) throw std::runtime_error("a coded tensor has codes beyond its levels");
    code = order[firsts[list] + word];
  }
  *used = at;
  return codes;
}

}  // namespace gww
