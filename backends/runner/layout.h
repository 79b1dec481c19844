// A library refuses weights that it was not compiled with; backends/weights.py says what the number is.
#pragma once

#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <stdexcept>
#include <vector>

#include "gww.h"

namespace graphwright {

inline int64_t LayoutNumber(const std::vector<gww::Tensor>& weights) {
  uint64_t number = 0xCBF29CE484222325u;
  auto add = [&number](uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) number = (number ^ (value >> (8 * i) & 0xFF)) * 0x100000001B3u;
  };
  for (const gww::Tensor& weight : weights) {
    add(weight.dtype.code, 1);
    add(weight.dtype.bits, 1);
    add(weight.shape.size(), 4);
    for (int64_t size : weight.shape) add(static_cast<uint64_t>(size), 8);
  }
  return static_cast<int64_t>(number >> 1);
}

// Kernels read weights without another look. Libraries of older versions have no such function.
inline void CheckWeights(const tvm::ffi::Module& machine, const std::vector<gww::Tensor>& weights) {
  auto check = machine->GetFunction("check_weights", true);
  if (!check.has_value()) return;
  try {
    (*check)(tvm::ffi::Shape({LayoutNumber(weights)}));
  } catch (const tvm::ffi::Error&) {
    throw std::runtime_error("weights.bin is not the one that model.so was compiled with");
  }
}

}  // namespace graphwright
