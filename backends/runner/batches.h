// The batch sizes of a library and how a batch is cut up for them; backends/batches.py says what the functions mean.
#pragma once

#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace graphwright {

// Rows `start` to `start + rows` of a batch, run by the program for `size` rows; 0 means the only program there is.
struct Piece {
  int64_t size, start, rows;
  std::string entry() const { return size ? "main_" + std::to_string(size) : "main"; }
  bool full() const { return rows == size; }
};

class Batches {
 public:
  Batches() = default;
  explicit Batches(const tvm::ffi::Module& machine)
      : sizes_(Ask(machine, "batch_sizes")), axes_(Ask(machine, "batch_axes")), pieces_(Ask(machine, "batch_pieces")) {}

  // Empty for a library with one program.
  const std::vector<int64_t>& sizes() const { return sizes_; }
  bool HasBatch(size_t input) const { return input < axes_.size() && axes_[input] == 0; }

  // The pieces for inputs of these shapes.
  std::vector<Piece> Plan(const std::vector<std::vector<int64_t>>& shapes) const {
    if (sizes_.empty()) return {{0, 0, 0}};
    const int64_t rows = Rows(shapes);
    if (std::count(sizes_.begin(), sizes_.end(), rows)) return {{rows, 0, rows}};
    if (rows < 1 || pieces_.empty() || !pieces_[0]) throw std::runtime_error(Refusal(rows));
    std::vector<Piece> plan;
    for (int64_t start = 0; start < rows; start += plan.back().size) {
      int64_t size = sizes_.front();
      for (int64_t each : sizes_)
        if (each <= rows - start) size = each;
      plan.push_back({size, start, std::min(size, rows - start)});
    }
    return plan;
  }

 private:
  static std::vector<int64_t> Ask(const tvm::ffi::Module& machine, const char* name) {
    auto function = machine->GetFunction(name, true);
    if (!function.has_value()) return {};
    auto shape = (*function)().cast<tvm::ffi::Shape>();
    return {shape.begin(), shape.end()};
  }

  int64_t Rows(const std::vector<std::vector<int64_t>>& shapes) const {
    int64_t rows = -1;
    for (size_t input = 0; input < std::min(axes_.size(), shapes.size()); ++input) {
      if (axes_[input] < 0) continue;
      if (static_cast<size_t>(axes_[input]) >= shapes[input].size())
        throw std::runtime_error("input " + std::to_string(input) + " has no batch dimension");
      const int64_t found = shapes[input][axes_[input]];
      if (rows >= 0 && found != rows)
        throw std::runtime_error("inputs of " + std::to_string(rows) + " and " + std::to_string(found) + " rows");
      rows = found;
    }
    if (rows < 0) throw std::runtime_error("no input has a batch dimension");
    return rows;
  }

  std::string Refusal(int64_t rows) const {
    std::string there;
    for (int64_t each : sizes_) there += (there.empty() ? "" : ", ") + std::to_string(each);
    return "a batch of " + std::to_string(rows) + " was given; the model was compiled for batches of " + there;
  }

  std::vector<int64_t> sizes_, axes_, pieces_;
};

}  // namespace graphwright
