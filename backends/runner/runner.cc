// Runs an artifact without Python: the library, its weights and TVM's small runtime are all it takes.
//
//   runner DIR INPUTS.bin OUTPUTS.bin [--runs N] [--threads N] [--device cpu|cuda]
//
// DIR holds model.so and weights.bin. INPUTS.bin and OUTPUTS.bin are GWW1 files like weights.bin, with the model's
// inputs and outputs in the order of its signature. Prints the time of every run. Exit code 2 with one line on
// stderr if anything is wrong.
//
// The runtime is reached through its registered functions, since TVM's wheel ships only the headers of its
// foreign-function layer.
#include <dlfcn.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "gww.h"

namespace ffi = tvm::ffi;

namespace {

constexpr int kPooledAllocator = 2;

struct Options {
  std::string artifact, inputs, outputs;
  int runs = 1;
  int threads = 0;
  DLDevice device{kDLCPU, 0};
};

Options Parse(int argc, char** argv) {
  Options options;
  std::vector<std::string> files;
  for (int i = 1; i < argc; ++i) {
    std::string word = argv[i];
    if (word.rfind("--", 0) != 0) {
      files.push_back(word);
      continue;
    }
    if (++i == argc) throw std::runtime_error(word + " wants a value");
    std::string value = argv[i];
    if (word == "--runs") {
      options.runs = std::atoi(value.c_str());
    } else if (word == "--threads") {
      options.threads = std::atoi(value.c_str());
    } else if (word == "--device" && (value == "cpu" || value == "cuda")) {
      options.device.device_type = value == "cuda" ? kDLCUDA : kDLCPU;
    } else {
      throw std::runtime_error("unknown option " + word + " " + value);
    }
  }
  if (files.size() != 3 || options.runs < 1) {
    throw std::runtime_error("usage: runner DIR INPUTS.bin OUTPUTS.bin [--runs N] [--threads N] [--device cpu|cuda]");
  }
  options.artifact = files[0];
  options.inputs = files[1];
  options.outputs = files[2];
  return options;
}

// On the CPU a tensor is the mapped file itself; a GPU gets a copy.
ffi::Tensor ToDevice(gww::Tensor& tensor, DLDevice device) {
  if (device.device_type != kDLCPU) {
    auto allocate = ffi::Function::GetGlobalRequired("runtime.TVMTensorAllocWithScope");
    auto copy = ffi::Function::GetGlobalRequired("runtime.TVMTensorCopyFromBytes");
    auto result = allocate(ffi::Shape(tensor.shape), tensor.dtype, device, nullptr).cast<ffi::Tensor>();
    copy(result, static_cast<void*>(tensor.data), static_cast<int64_t>(tensor.bytes));
    return result;
  }
  auto* managed = new DLManagedTensor{};
  managed->dl_tensor = DLTensor{tensor.data,        device,  static_cast<int32_t>(tensor.shape.size()), tensor.dtype,
                                tensor.shape.data(), nullptr, 0};
  managed->deleter = [](DLManagedTensor* self) { delete self; };
  return ffi::Tensor::FromDLPack(managed);
}

ffi::Module OpenMachine(const Options& options) {
  if (options.device.device_type == kDLCUDA && !dlopen("libtvm_runtime_cuda.so", RTLD_NOW | RTLD_GLOBAL)) {
    throw std::runtime_error(dlerror());
  }
  // Read when the thread pool is made, at the first parallel loop.
  if (options.threads > 0) setenv("TVM_NUM_THREADS", std::to_string(options.threads).c_str(), 1);
  auto library = ffi::Module::LoadFromFile(options.artifact + "/model.so");
  auto machine = (*library->GetFunction("vm_load_executable", true))().cast<ffi::Module>();
  auto initialize = *machine->GetFunction("vm_initialization", true);
  if (options.device.device_type == kDLCPU) {
    initialize(static_cast<int>(kDLCPU), 0, kPooledAllocator);
  } else {
    initialize(static_cast<int>(kDLCUDA), 0, kPooledAllocator, static_cast<int>(kDLCPU), 0, kPooledAllocator);
  }
  return machine;
}

std::vector<ffi::Tensor> Outputs(const ffi::Any& result) {
  if (auto single = result.as<ffi::Tensor>()) return {*single};
  std::vector<ffi::Tensor> outputs;
  for (const ffi::Tensor& output : result.cast<ffi::Array<ffi::Tensor>>()) outputs.push_back(output);
  return outputs;
}

void WriteOutputs(const std::string& path, const std::vector<ffi::Tensor>& outputs) {
  auto copy = ffi::Function::GetGlobalRequired("runtime.TVMTensorCopyToBytes");
  std::vector<std::vector<char>> storage;
  std::vector<gww::Tensor> tensors;
  for (const ffi::Tensor& output : outputs) {
    storage.emplace_back(ffi::GetDataSize(output));
    copy(output, static_cast<void*>(storage.back().data()), static_cast<int64_t>(storage.back().size()));
    std::vector<int64_t> shape(output.shape().begin(), output.shape().end());
    tensors.push_back({output.dtype(), shape, storage.back().data(), storage.back().size()});
  }
  gww::Write(path, tensors);
}

void RefuseWithoutLibrary(const std::string& artifact) {
  if (std::ifstream(artifact + "/model.so") || !std::ifstream(artifact + "/model.onnx")) return;
  throw std::runtime_error(artifact + " was compiled for ONNX Runtime and holds no library; use --backend tvm");
}

void Run(const Options& options) {
  RefuseWithoutLibrary(options.artifact);
  gww::MappedFile weights_file(options.artifact + "/weights.bin"), inputs_file(options.inputs);
  auto weights = gww::Read(weights_file), inputs = gww::Read(inputs_file);
  auto machine = OpenMachine(options);
  std::vector<ffi::Any> arguments;
  for (auto& input : inputs) arguments.emplace_back(ToDevice(input, options.device));
  ffi::Array<ffi::Tensor> packed;
  for (auto& weight : weights) packed.push_back(ToDevice(weight, options.device));
  arguments.emplace_back(packed);
  std::vector<ffi::AnyView> views(arguments.begin(), arguments.end());
  auto main = *machine->GetFunction("main", true);
  auto wait = ffi::Function::GetGlobalRequired("runtime.Device_StreamSync");
  ffi::Any result;
  for (int run = 0; run < options.runs; ++run) {
    auto start = std::chrono::steady_clock::now();
    main.CallPacked(views.data(), static_cast<int32_t>(views.size()), &result);
    if (options.device.device_type != kDLCPU) wait(options.device, static_cast<int64_t>(0));
    std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - start;
    std::cout << "run " << run << ": " << elapsed.count() << " ms" << std::endl;
  }
  WriteOutputs(options.outputs, Outputs(result));
}

}  // namespace

int main(int argc, char** argv) try {
  Run(Parse(argc, argv));
  return 0;
} catch (const ffi::Error& error) {
  std::cerr << "runner: " << error.message() << std::endl;
  return 2;
} catch (const std::exception& error) {
  std::cerr << "runner: " << error.what() << std::endl;
  return 2;
}
