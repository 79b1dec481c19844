// An artifact as a C++ object: graphwright::Model model("DIR"); auto outputs = model.Run({...});
//
// Header only; needs C++17, the headers of tvm_ffi and TVM's two runtime libraries:
//
//   g++ -std=c++17 -O2 program.cc $(python -m graphwright.backends.runner --flags) -o program
//
// A Model must stay on one thread at a time. Errors are std::runtime_error or tvm::ffi::Error.
#pragma once

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "artifact.h"
#include "batches.h"
#include "gww.h"
#include "layout.h"

// Of libtvm_runtime, whose headers its package leaves out.
namespace tvm::runtime::threading {
void SetMaxConcurrency(int value);
}

namespace graphwright {

namespace ffi = tvm::ffi;

// A tensor of the caller's. Memory that begins at a multiple of 64 bytes is read in place, other memory is copied.
struct Input {
  const void* data;
  std::vector<int64_t> shape;
  DLDataType dtype{kDLFloat, 32, 1};
};

// A tensor of the model's; `tensor` keeps its memory alive. Aligned, contiguous memory of the CPU.
struct Output {
  ffi::Tensor tensor;

  std::vector<int64_t> shape() const { return {tensor.shape().begin(), tensor.shape().end()}; }
  size_t bytes() const { return ffi::GetDataSize(tensor); }
  template <typename T>
  const T* data() const {
    if (tensor.dtype().bits != 8 * sizeof(T)) throw std::runtime_error("an output has another element type");
    return static_cast<const T*>(tensor.data_ptr());
  }
};

class Model {
 public:
  // Loads the artifact in `folder`; throws if it was built for a CPU that can do more than this one. Every Model has
  // its own number of threads, up to that of the cores; 0 leaves it to TVM_NUM_THREADS.
  explicit Model(const std::string& folder, int threads = 1)
      : weights_file_(folder + "/weights.bin"), threads_(threads) {
    RequireFeatures(folder);
    if (threads > 0) setenv("TVM_NUM_THREADS", std::to_string(std::thread::hardware_concurrency()).c_str(), 0);
    setenv("TVM_BIND_THREADS", "0", 0);
    weights_ = gww::Read(weights_file_);
    for (gww::Tensor& weight : weights_) packed_.push_back(InPlace(weight.data, weight.shape, weight.dtype));
    // The machine only borrows the library's code.
    library_ = OpenLibrary(folder, [](const std::string& path) { return ffi::Module::LoadFromFile(path); });
    machine_ = (*(*library_)->GetFunction("vm_load_executable", true))().cast<ffi::Module>();
    constexpr int kPooledAllocator = 2;
    (*(*machine_)->GetFunction("vm_initialization", true))(static_cast<int>(kDLCPU), 0, kPooledAllocator);
    CheckWeights(*machine_, weights_);
    batches_ = Batches(*machine_);
  }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  // The batch sizes that the artifact was compiled for; empty where there is one program.
  const std::vector<int64_t>& batch_sizes() const { return batches_.sizes(); }

  // Runs on inputs in the order of the model's signature; they must have its shapes and types. With several batch
  // sizes the leading dimension says which program runs; a size that is not there runs in pieces where the artifact
  // allows it, and its outputs are copied together.
  std::vector<Output> Run(const std::vector<Input>& inputs) {
    std::vector<std::vector<int64_t>> shapes;
    for (const Input& input : inputs) shapes.push_back(input.shape);
    const std::vector<Piece> plan = batches_.Plan(shapes);
    if (plan.size() == 1 && plan[0].full()) return RunOne(inputs, plan[0].entry());
    std::vector<std::vector<Output>> parts;
    for (const Piece& piece : plan) parts.push_back(RunPiece(inputs, piece));
    std::vector<Output> joined;
    for (size_t i = 0; i < parts[0].size(); ++i) joined.push_back(Joined(parts, plan, i));
    return joined;
  }

 private:
  // Full pieces are read where they lie; a part of one is copied, its last row repeated.
  std::vector<Output> RunPiece(const std::vector<Input>& inputs, const Piece& piece) {
    std::vector<Input> given = inputs;
    std::vector<std::vector<char>> copies;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!batches_.HasBatch(i)) continue;
      const size_t row = Bytes(inputs[i]) / static_cast<size_t>(inputs[i].shape[0]);
      const char* first = static_cast<const char*>(inputs[i].data) + row * static_cast<size_t>(piece.start);
      given[i].shape[0] = piece.size;
      given[i].data = first;
      if (piece.full()) continue;
      std::vector<char>& copy = copies.emplace_back(row * static_cast<size_t>(piece.size));
      for (int64_t each = 0; each < piece.size; ++each) {
        const size_t source = static_cast<size_t>(std::min(each, piece.rows - 1));
        std::memcpy(copy.data() + row * static_cast<size_t>(each), first + row * source, row);
      }
      given[i].data = copy.data();
    }
    return RunOne(given, piece.entry());
  }

  static Output Joined(const std::vector<std::vector<Output>>& parts, const std::vector<Piece>& plan, size_t index) {
    std::vector<int64_t> shape = parts[0][index].shape();
    shape[0] = plan.back().start + plan.back().rows;
    auto allocate = ffi::Function::GetGlobalRequired("runtime.TVMTensorAllocWithScope");
    auto whole = allocate(ffi::Shape(shape), parts[0][index].tensor.dtype(), DLDevice{kDLCPU, 0}, nullptr)
                     .cast<ffi::Tensor>();
    const size_t row = ffi::GetDataSize(whole) / static_cast<size_t>(shape[0]);
    for (size_t part = 0; part < parts.size(); ++part) {
      char* to = static_cast<char*>(whole.data_ptr()) + row * static_cast<size_t>(plan[part].start);
      std::memcpy(to, parts[part][index].tensor.data_ptr(), row * static_cast<size_t>(plan[part].rows));
    }
    return Output{whole};
  }

  // Pools belong to the calling thread; with one thread there is none.
  void UseThreads() const {
    static thread_local int current = 0;
    if (threads_ <= 0 || threads_ == current) return;
    tvm::runtime::threading::SetMaxConcurrency(threads_ == 1 ? 1 : 0);
    if (threads_ > 1) ffi::Function::GetGlobalRequired("runtime.config_threadpool")(1, threads_);
    current = threads_;
  }

  std::vector<Output> RunOne(const std::vector<Input>& inputs, const std::string& entry) {
    UseThreads();
    if (!programs_.count(entry)) programs_[entry] = *(*machine_)->GetFunction(entry, true);
    std::vector<std::vector<int64_t>> shapes;  // Tensors in place borrow them.
    shapes.reserve(inputs.size());
    std::vector<ffi::Any> arguments;
    for (const Input& input : inputs) {
      shapes.push_back(input.shape);
      arguments.emplace_back(Place(input, shapes.back()));
    }
    arguments.emplace_back(packed_);
    std::vector<ffi::AnyView> views(arguments.begin(), arguments.end());
    ffi::Any result;
    programs_[entry].CallPacked(views.data(), static_cast<int32_t>(views.size()), &result);
    if (auto single = result.as<ffi::Tensor>()) return {Output{*single}};
    std::vector<Output> outputs;
    for (const ffi::Tensor& output : result.cast<ffi::Array<ffi::Tensor>>()) outputs.push_back(Output{output});
    return outputs;
  }

  static size_t Bytes(const Input& input) {
    size_t bytes = (input.dtype.bits * input.dtype.lanes + 7) / 8;
    for (int64_t extent : input.shape) bytes *= static_cast<size_t>(extent);
    return bytes;
  }

  static ffi::Tensor InPlace(void* data, std::vector<int64_t>& shape, DLDataType dtype) {
    auto* managed = new DLManagedTensor{};
    auto rank = static_cast<int32_t>(shape.size());
    managed->dl_tensor = DLTensor{data, DLDevice{kDLCPU, 0}, rank, dtype, shape.data(), nullptr, 0};
    managed->deleter = [](DLManagedTensor* self) { delete self; };
    return ffi::Tensor::FromDLPack(managed);
  }

  static ffi::Tensor Place(const Input& input, std::vector<int64_t>& shape) {
    void* data = const_cast<void*>(input.data);
    if (reinterpret_cast<uintptr_t>(data) % gww::kAlignment == 0) return InPlace(data, shape, input.dtype);
    auto allocate = ffi::Function::GetGlobalRequired("runtime.TVMTensorAllocWithScope");
    auto copy = ffi::Function::GetGlobalRequired("runtime.TVMTensorCopyFromBytes");
    auto tensor = allocate(ffi::Shape(shape), input.dtype, DLDevice{kDLCPU, 0}, nullptr).cast<ffi::Tensor>();
    copy(tensor, data, static_cast<int64_t>(ffi::GetDataSize(tensor)));
    return tensor;
  }

  gww::MappedFile weights_file_;
  int threads_;
  std::vector<gww::Tensor> weights_;
  ffi::Array<ffi::Tensor> packed_;
  ffi::Optional<ffi::Module> library_, machine_;
  std::map<std::string, ffi::Function> programs_;
  Batches batches_;
};

}  // namespace graphwright
