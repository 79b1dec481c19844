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
#include <string>
#include <utility>
#include <vector>

#include "gww.h"

namespace graphwright {

namespace ffi = tvm::ffi;

// A tensor of the caller's. Memory that begins at a multiple of 64 bytes is read in place, other memory is copied.
struct Input {
  const void* data;
  std::vector<int64_t> shape;
  DLDataType dtype{kDLFloat, 32, 1};
};

// A tensor of the model's; `tensor` keeps its memory alive.
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
  // Loads the artifact in `folder` for this CPU. The number of threads is that of the process: the first Model
  // decides; 0 leaves it to TVM_NUM_THREADS.
  explicit Model(const std::string& folder, int threads = 1) : weights_file_(folder + "/weights.bin") {
    if (threads > 0) setenv("TVM_NUM_THREADS", std::to_string(threads).c_str(), 1);
    setenv("TVM_BIND_THREADS", "0", 0);
    weights_ = gww::Read(weights_file_);
    for (gww::Tensor& weight : weights_) packed_.push_back(InPlace(weight.data, weight.shape, weight.dtype));
    // The machine only borrows the library's code.
    library_ = ffi::Module::LoadFromFile(folder + "/model.so");
    machine_ = (*(*library_)->GetFunction("vm_load_executable", true))().cast<ffi::Module>();
    constexpr int kPooledAllocator = 2;
    (*(*machine_)->GetFunction("vm_initialization", true))(static_cast<int>(kDLCPU), 0, kPooledAllocator);
    main_ = (*machine_)->GetFunction("main", true);
  }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  // Runs on inputs in the order of the model's signature; they must have its shapes and types.
  std::vector<Output> Run(const std::vector<Input>& inputs) {
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
    (*main_).CallPacked(views.data(), static_cast<int32_t>(views.size()), &result);
    if (auto single = result.as<ffi::Tensor>()) return {Output{*single}};
    std::vector<Output> outputs;
    for (const ffi::Tensor& output : result.cast<ffi::Array<ffi::Tensor>>()) outputs.push_back(Output{output});
    return outputs;
  }

 private:
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
  std::vector<gww::Tensor> weights_;
  ffi::Array<ffi::Tensor> packed_;
  ffi::Optional<ffi::Module> library_, machine_;
  ffi::Optional<ffi::Function> main_;
};

}  // namespace graphwright
