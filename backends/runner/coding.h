// Restoring float32 weights from codes; backends/coding.py documents the layout and has the same arithmetic.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "lossless.h"
#include "prefix_codes.h"

namespace gww {

// Reads numbers off a payload, never beyond its end.
class Payload {
 public:
  Payload(const char* data, uint64_t bytes) : at_(data), left_(bytes) {}

  template <typename T>
  std::vector<T> take(uint64_t count) {
    if (count > left_ / sizeof(T)) throw std::runtime_error("a coded tensor is truncated");
    std::vector<T> numbers(count);
    if (count) std::memcpy(numbers.data(), at_, count * sizeof(T));
    at_ += count * sizeof(T);
    left_ -= count * sizeof(T);
    return numbers;
  }

  // Signed integers of 64 bits, plain or as varints whose lowest bit is the sign.
  std::vector<int64_t> integers(uint64_t count, bool compact) {
    if (!compact) return take<int64_t>(count);
    std::vector<int64_t> numbers(count);
    for (int64_t& number : numbers) {
      uint64_t bits = 0;
      for (uint32_t place = 0;; ++place) {
        if (!left_) throw std::runtime_error("a coded tensor is truncated");
        const auto byte = static_cast<uint8_t>(*at_);
        skip(1);
        if (place == 9 && byte > 1) throw std::runtime_error("a coded tensor has an integer of more than 64 bits");
        bits |= static_cast<uint64_t>(byte & 0x7f) << (7 * place);
        if (byte < 0x80) break;
      }
      number = static_cast<int64_t>(bits >> 1 ^ (~(bits & 1) + 1));
    }
    return numbers;
  }

  std::vector<float> scales(uint64_t count, bool compact) {
    if (!compact || !count) return take<float>(count);
    if (count > UINT64_MAX / 4 || !CanHold(left_, count * 4)) throw std::runtime_error("a coded tensor contradicts its own size");
    std::vector<uint32_t> words(count);
    std::vector<float> numbers(count);
    Lossless part(at_, left_);
    part.Part(words.data(), count);
    skip(part.used());
    std::memcpy(numbers.data(), words.data(), count * sizeof(float));
    return numbers;
  }

  std::vector<uint8_t> codes(uint64_t count, uint64_t levels) {
    uint64_t used = 0;
    auto found = ReadCodes(at_, left_, count, levels, &used);
    skip(used);
    return found;
  }

 private:
  void skip(uint64_t bytes) {
    at_ += bytes;
    left_ -= bytes;
  }

  const char* at_;
  uint64_t left_;
};

inline float FromHalf(uint16_t half) {
  uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, rest = half & 0x7fff, bits;
  float value;
  if (rest >= 0x7c00) {
    bits = sign | 0x7f800000 | (rest & 0x3ff) << 13;
    std::memcpy(&value, &bits, 4);
    return value;
  }
  // Exponents are 112 apart; multiplying by that power restores denormal numbers as well.
  bits = rest << 13;
  std::memcpy(&value, &bits, 4);
  value *= 0x1p112f;
  return sign ? -value : value;
}

inline float FromBrain(uint16_t half) {
  uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

constexpr uint32_t kCompact = 5;

struct Coding {
  uint32_t kind, per_byte;
  int64_t block, step, f_start, g_start, outputs, inputs, lanes;
  std::vector<int64_t> shape, f_strides, g_strides;
  std::vector<double> matrix;
  uint64_t products, taps;
  std::vector<float> levels, scales, zeros;
  std::vector<uint8_t> codes;
  std::vector<uint16_t> halves;

  static Coding Read(const char* data, uint64_t bytes) {
    Payload payload(data, bytes);
    auto head = payload.take<uint32_t>(4);
    Coding made;
    const bool compact = head[0] == kCompact;
    made.kind = compact ? 0 : head[0];
    made.per_byte = head[3];
    if (made.kind > 2 || head[1] > 32 || head[2] > 65536) throw std::runtime_error("a coded tensor is of an unknown kind");
    made.shape = payload.integers(head[1], compact);
    made.f_strides = payload.integers(head[1], compact);
    made.g_strides = payload.integers(head[1], compact);
    auto rest = payload.integers(11, compact);
    made.f_start = rest[4];
    made.g_start = rest[5];
    made.block = rest[0];
    made.step = rest[1];
    made.products = static_cast<uint64_t>(rest[6]);
    made.taps = static_cast<uint64_t>(rest[7]);
    made.outputs = rest[8];
    made.inputs = rest[9];
    made.lanes = rest[10];
    if (made.products > 4096 || made.taps > 4096) throw std::runtime_error("a coded tensor contradicts itself");
    made.CheckNumbers();
    made.matrix = payload.take<double>(made.products * made.taps);
    made.levels = payload.take<float>(head[2]);
    made.scales = payload.scales(static_cast<uint64_t>(rest[2]), compact);
    made.zeros = payload.scales(rest[3] ? static_cast<uint64_t>(rest[2]) : 0, compact);
    uint64_t count = made.size();
    if (made.kind) {
      made.halves = payload.take<uint16_t>(count);
      return made;
    }
    if (head[2] < 1 || made.scales.empty() || made.per_byte != (compact ? 0 : PerByte(head[2]))) {
      throw std::runtime_error("a coded tensor has no levels or no scales");
    }
    if (compact) {
      made.per_byte = 1;
      made.codes = payload.codes(count, head[2]);
      return made;
    }
    made.codes = payload.take<uint8_t>((count + made.per_byte - 1) / made.per_byte);
    return made;
  }

  uint64_t size() const {
    uint64_t count = 1;
    for (int64_t size : shape) {
      if (size < 0 || (size && count > (uint64_t{1} << 40) / static_cast<uint64_t>(size))) {
        throw std::runtime_error("a coded tensor contradicts its own size");
      }
      count *= static_cast<uint64_t>(size);
    }
    return count;
  }

  // Numbers of what Restore writes.
  uint64_t restored() const {
    if (!products) return size();
    const uint64_t count = size();
    auto fits = [count](int64_t part) { return part >= 1 && static_cast<uint64_t>(part) <= count; };
    // Both are parts of what was counted, so that their product stays in 64 bits.
    if (!fits(outputs) || !fits(inputs) || taps < 1 || count % taps || count / taps % static_cast<uint64_t>(outputs) ||
        count / taps / static_cast<uint64_t>(outputs) != static_cast<uint64_t>(inputs)) {
      throw std::runtime_error("a coded tensor contradicts its own size");
    }
    if (lanes < 1 || lanes > 256 || products > 16 * taps) {
      throw std::runtime_error("a coded tensor has a transform that no kernel reads");
    }
    return products * static_cast<uint64_t>((outputs + lanes - 1) / lanes * lanes * inputs);
  }

  void Restore(float* out) const {
    if (!products) return Plain(out);
    std::vector<float> weights(size());
    Plain(weights.data());
    int64_t panels = (outputs + lanes - 1) / lanes;
    std::memset(out, 0, restored() * sizeof(float));
    for (int64_t o = 0; o < outputs; ++o) {
      for (int64_t c = 0; c < inputs; ++c) {
        const float* taps_of = &weights[static_cast<uint64_t>(o * inputs + c) * taps];
        for (uint64_t p = 0; p < products; ++p) {
          double sum = 0;
          for (uint64_t t = 0; t < taps; ++t) sum += matrix[p * taps + t] * taps_of[t];
          auto panel = static_cast<int64_t>(p) * panels + o / lanes;
          out[(panel * inputs + c) * lanes + o % lanes] = static_cast<float>(sum);
        }
      }
    }
  }

 private:
  // How many codes of so many levels go into a byte.
  static uint32_t PerByte(uint64_t levels) {
    if (levels < 2) levels = 2;
    uint32_t count = 1;
    for (uint64_t values = levels * levels; values <= 256; values *= levels) ++count;
    return count;
  }

  // Finding scales must stay within 64 bits.
  void CheckNumbers() const {
    size();
    double reach[2] = {std::abs(static_cast<double>(f_start)), std::abs(static_cast<double>(g_start))};
    for (size_t axis = 0; axis < shape.size(); ++axis) {
      const double steps = shape[axis] > 0 ? static_cast<double>(shape[axis] - 1) : 0;
      reach[0] += std::abs(static_cast<double>(f_strides[axis])) * steps;
      reach[1] += std::abs(static_cast<double>(g_strides[axis])) * steps;
    }
    const double most = 2147483648.0;
    if (reach[0] > most || reach[1] > most || std::abs(static_cast<double>(step)) > most || block < 1) {
      throw std::runtime_error("a coded tensor has strides that no weights have");
    }
  }

  static int64_t FloorDiv(int64_t a, int64_t b) { return a / b - (a % b < 0); }

  void Plain(float* out) const {
    uint64_t count = size();
    if (kind) {
      for (uint64_t i = 0; i < count; ++i) out[i] = kind == 1 ? FromHalf(halves[i]) : FromBrain(halves[i]);
      return;
    }
    std::vector<int64_t> index(shape.size());
    auto base = static_cast<uint32_t>(levels.size());
    int64_t f = f_start, g = g_start, number = FloorDiv(f, block), begin = number * block;
    uint32_t byte = 0;
    for (uint64_t i = 0; i < count; ++i) {
      byte = i % per_byte ? byte / base : codes[i / per_byte];
      if (f < begin || f - begin >= block) {
        number = FloorDiv(f, block);
        begin = number * block;
      }
      auto place = static_cast<uint64_t>(number * step + g);
      if (place >= scales.size()) throw std::runtime_error("a coded tensor reads beyond its scales");
      float level = levels[byte % base];
      if (!zeros.empty()) level -= zeros[place];
      out[i] = level * scales[place];
      for (size_t axis = shape.size(); axis-- > 0;) {
        f += f_strides[axis];
        g += g_strides[axis];
        if (++index[axis] < shape[axis]) break;
        f -= f_strides[axis] * shape[axis];
        g -= g_strides[axis] * shape[axis];
        index[axis] = 0;
      }
    }
  }
};

constexpr uint8_t kCoded = 192;
constexpr uint32_t kPieces = 3;

// A coding, or those of pieces one behind the other.
inline std::vector<Coding> ReadParts(const char* data, uint64_t bytes) {
  auto head = Payload(data, bytes).take<uint32_t>(4);
  if (head[0] != kPieces) return {Coding::Read(data, bytes)};
  if (!head[2]) throw std::runtime_error("a coded tensor has no pieces");
  std::vector<Coding> parts;
  uint64_t at = 16;
  for (uint32_t i = 0; i < head[2]; ++i) {
    uint64_t length = Payload(data + at, bytes - at).take<uint64_t>(1)[0];
    at += 8;
    if (length > bytes - at) throw std::runtime_error("a coded tensor is truncated");
    parts.push_back(Coding::Read(data + at, length));
    at += length;
  }
  return parts;
}

// float32 numbers in memory of their own that programs can read in place.
inline std::shared_ptr<char> RestoreCoded(const char* data, uint64_t bytes, uint64_t expected) {
  std::vector<Coding> parts = ReadParts(data, bytes);
  // Nothing is taken for it before all of them have said what they hold.
  uint64_t count = 0;
  for (const Coding& part : parts) count += part.restored();
  if (expected % sizeof(float) || count != expected / sizeof(float)) throw std::runtime_error("a coded tensor contradicts its own size");
  auto* memory = static_cast<char*>(std::aligned_alloc(64, (expected + 127) / 64 * 64));
  if (!memory) throw std::bad_alloc();
  std::shared_ptr<char> owned(memory, std::free);
  auto* out = reinterpret_cast<float*>(memory);
  for (const Coding& part : parts) {
    part.Restore(out);
    out += part.restored();
  }
  return owned;
}

// The nearest bfloat16, ties to even.
inline uint16_t ToBrain(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16 & 0x8000) | 0x7fc0);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

constexpr uint32_t kSplit = 4;

// uint16: the bits of bfloat16 that add up to coded numbers; backends/split_coding.py documents the order.
inline std::shared_ptr<char> RestoreSplit(const char* data, uint64_t bytes, uint64_t expected) {
  constexpr uint64_t kLanes = 16;
  Payload payload(data, bytes);
  const auto head = payload.take<uint32_t>(4);
  const auto sizes = payload.take<uint64_t>(5);
  const uint64_t parts = head[2], depth = sizes[0], across = sizes[1], word = sizes[2], period = sizes[3], gap = sizes[4];
  if (head[0] != kSplit || parts < 1 || parts > 3 || expected % (parts * sizeof(uint16_t))) {
    throw std::runtime_error("a coded tensor is split into parts that no kernel reads");
  }
  const uint64_t count = expected / (parts * sizeof(uint16_t));
  uint64_t run = 0, step = 0, group = 0;
  if (!word || word > depth || depth % word || gap >= depth || __builtin_mul_overflow(depth, kLanes, &run) ||
      __builtin_mul_overflow(run, across, &step) || __builtin_mul_overflow(step, period, &group) || !group ||
      count % group) {
    throw std::runtime_error("a coded tensor is in panels that no kernel reads");
  }
  const std::shared_ptr<char> restored = RestoreCoded(data + 56, bytes - 56, count * sizeof(float));
  auto* numbers = reinterpret_cast<float*>(restored.get());
  for (uint64_t begin = group - step; gap && begin < count; begin += group) {
    for (uint64_t panel = begin; panel < begin + step; panel += run) {
      for (uint64_t lane = 0; lane < kLanes; ++lane) {
        const auto at = [=](uint64_t k) { return panel + (k / word * kLanes + lane) * word + k % word; };
        for (uint64_t k = depth; k-- > gap;) numbers[at(k)] = numbers[at(k - gap)];
        for (uint64_t k = 0; k < gap; ++k) numbers[at(k)] = 0;
      }
    }
  }
  auto* memory = static_cast<char*>(std::aligned_alloc(64, (expected + 127) / 64 * 64));
  if (!memory) throw std::bad_alloc();
  std::shared_ptr<char> owned(memory, std::free);
  auto* out = reinterpret_cast<uint16_t*>(memory);
  for (uint64_t n = 0; n < count; ++n) {
    float rest = numbers[n];
    for (uint64_t part = 0; part < parts; ++part) {
      const uint16_t brain = ToBrain(rest);
      out[n / run * run * parts + part * run + n % run] = brain;
      const float rounded = FromBrain(brain);
      rest = std::isfinite(rounded) ? rest - rounded : 0;
    }
  }
  return owned;
}

}  // namespace gww
