// Part of libraries for CPUs, see byte_code.py: restores the virtual machine's program when the library is loaded.
//
// `packed` is a stream of RFC 1951 that the same build has made, and unpacks to `sizeof __tvm_ffi__library_bin`
// bytes, where TVM looks for them once the loader has run what is below. Small rather than fast: some 100 kB.

namespace {

struct Input {
  const unsigned char* at;
  unsigned held, ready;

  unsigned bits(unsigned count) {
    while (ready < count) {
      held |= static_cast<unsigned>(*at++) << ready;
      ready += 8;
    }
    const unsigned value = held & ((1u << count) - 1);
    held >>= count;
    ready -= count;
    return value;
  }
};

constexpr unsigned kLongest = 15;

// A canonical Huffman code: how many symbols there are of each length, and the symbols by length.
struct Code {
  unsigned short counts[kLongest + 1], symbols[288];

  void make(const unsigned char* lengths, unsigned size) {
    unsigned short places[kLongest + 2] = {};
    for (unsigned length = 0; length <= kLongest; ++length) counts[length] = 0;
    for (unsigned symbol = 0; symbol < size; ++symbol) ++counts[lengths[symbol]];
    counts[0] = 0;
    for (unsigned length = 1; length <= kLongest; ++length) {
      places[length + 1] = static_cast<unsigned short>(places[length] + counts[length]);
    }
    for (unsigned symbol = 0; symbol < size; ++symbol) {
      if (lengths[symbol]) symbols[places[lengths[symbol]]++] = static_cast<unsigned short>(symbol);
    }
  }

  unsigned next(Input& input) const {
    unsigned code = 0, first = 0, place = 0;
    for (unsigned length = 1;; ++length) {
      code = code << 1 | input.bits(1);
      first <<= 1;
      if (code - first < counts[length]) return symbols[place + code - first];
      first += counts[length];
      place += counts[length];
    }
  }
};

// Lengths and distances are in groups of so many that share their extra bits.
unsigned grown(Input& input, unsigned symbol, unsigned group) {
  if (symbol < 2 * group) return symbol;
  const unsigned extra = symbol / group - 1;
  return ((group + symbol % group) << extra) + input.bits(extra);
}

void read_codes(Input& input, bool fixed, Code& literals, Code& distances) {
  static const unsigned char kOrder[] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
  unsigned char lengths[320] = {};
  unsigned many = 288, far = 30, filled = 0;
  if (fixed) {
    for (unsigned i = 0; i < 288; ++i) lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
    for (unsigned i = 0; i < 30; ++i) lengths[288 + i] = 5;
  } else {
    many = 257 + input.bits(5);
    far = 1 + input.bits(5);
    const unsigned given = 4 + input.bits(4);
    for (unsigned i = 0; i < given; ++i) lengths[kOrder[i]] = static_cast<unsigned char>(input.bits(3));
    literals.make(lengths, 19);
    for (unsigned i = 0; i < 19; ++i) lengths[i] = 0;
    while (filled < many + far) {
      const unsigned symbol = literals.next(input);
      unsigned repeated = 1;
      unsigned char length = static_cast<unsigned char>(symbol);
      if (symbol >= 16) {
        length = symbol == 16 ? lengths[filled - 1] : 0;
        repeated = symbol == 16 ? 3 + input.bits(2) : symbol == 17 ? 3 + input.bits(3) : 11 + input.bits(7);
      }
      while (repeated--) lengths[filled++] = length;
    }
  }
  literals.make(lengths, many);
  distances.make(lengths + many, far);
}

__attribute__((constructor)) void inflate() {
  Input input = {packed, 0, 0};
  unsigned char* out = __tvm_ffi__library_bin;
  for (bool last = false; !last;) {
    last = input.bits(1);
    const unsigned kind = input.bits(2);
    if (kind == 0) {
      input.bits(input.ready % 8);
      const unsigned size = input.bits(16);
      input.bits(16);
      for (unsigned i = 0; i < size; ++i) *out++ = static_cast<unsigned char>(input.bits(8));
      continue;
    }
    Code literals, distances;
    read_codes(input, kind == 1, literals, distances);
    for (unsigned symbol; (symbol = literals.next(input)) != 256;) {
      if (symbol < 256) {
        *out++ = static_cast<unsigned char>(symbol);
        continue;
      }
      unsigned length = symbol == 285 ? 258 : 3 + grown(input, symbol - 257, 4);
      const unsigned char* from = out - 1 - grown(input, distances.next(input), 2);
      while (length--) *out++ = *from++;
    }
  }
}

}  // namespace
