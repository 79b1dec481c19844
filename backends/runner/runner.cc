// Runs an artifact without Python: the library, its weights and TVM's small runtime are all it takes.
//
//   runner DIR INPUTS.bin OUTPUTS.bin [--runs N] [--threads N] [--device cpu|cuda]
//
// DIR holds model.so and weights.bin. INPUTS.bin and OUTPUTS.bin are GWW1 files like weights.bin, with the model's
// inputs and outputs in the order of its signature; of several batch sizes it takes what fits, in pieces if need be.
// Prints the time of every run. Exit code 2 with one line on stderr if anything is wrong, such as a CPU that lacks
// what the library was built for (manifest.json in DIR says what that is).
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
#include <cstring>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "artifact.h"
#include "batches.h"
#include "gww.h"
#include "layout.h"

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
      if (options.threads < 1 || options.threads > 4096) throw std::runtime_error("--threads takes 1 to 4096");
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

// One program with the part of the inputs that it gets. Parts that are not full are kept in `copies`.
struct Call {
  graphwright::Piece piece;
  std::vector<gww::Tensor> inputs;
  std::vector<std::vector<char>> copies;
  std::vector<ffi::Any> arguments;
  std::vector<ffi::Tensor> outputs;
};

Call Cut(const std::vector<gww::Tensor>& inputs, const graphwright::Batches& batches, const graphwright::Piece& piece) {
  Call call{piece, inputs, {}, {}, {}};
  for (size_t i = 0; i < inputs.size(); ++i) {
    gww::Tensor& input = call.inputs[i];
    if (!piece.size || !batches.HasBatch(i) || input.shape[0] == piece.size) continue;
    const uint64_t row = input.bytes / input.shape[0];
    // Aligned as the code expects: rows may begin anywhere.
    auto& copy = call.copies.emplace_back(row * piece.size + gww::kAlignment);
    char* place = copy.data() + gww::kAlignment - reinterpret_cast<uintptr_t>(copy.data()) % gww::kAlignment;
    for (int64_t each = 0; each < piece.size; ++each) {
      const int64_t source = piece.start + std::min(each, piece.rows - 1);
      std::memcpy(place + row * each, input.data + row * source, row);
    }
    input.shape[0] = piece.size;
    input.data = place;
    input.bytes = row * piece.size;
  }
  return call;
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

// Outputs of all pieces, joined along the batch.
void WriteOutputs(const std::string& path, const std::vector<Call>& calls) {
  auto copy = ffi::Function::GetGlobalRequired("runtime.TVMTensorCopyToBytes");
  std::vector<std::vector<char>> storage(calls[0].outputs.size());
  std::vector<gww::Tensor> tensors;
  for (size_t i = 0; i < storage.size(); ++i) {
    const ffi::Tensor& first = calls[0].outputs[i];
    std::vector<int64_t> shape(first.shape().begin(), first.shape().end());
    for (const Call& call : calls) {
      std::vector<char> part(ffi::GetDataSize(call.outputs[i]));
      copy(call.outputs[i], static_cast<void*>(part.data()), static_cast<int64_t>(part.size()));
      if (!call.piece.full()) part.resize(part.size() / call.piece.size * call.piece.rows);
      storage[i].insert(storage[i].end(), part.begin(), part.end());
    }
    if (calls.size() > 1 || !calls[0].piece.full()) shape[0] = calls.back().piece.start + calls.back().piece.rows;
    tensors.push_back({first.dtype(), shape, storage[i].data(), storage[i].size()});
  }
  gww::Write(path, tensors);
}

void RefuseWithoutLibrary(const std::string& artifact) {
  if (std::ifstream(artifact + "/model.so") || !std::ifstream(artifact + "/model.onnx")) return;
  throw std::runtime_error(artifact + " was compiled for ONNX Runtime and holds no library; use --backend tvm");
}

void Run(const Options& options) {
  RefuseWithoutLibrary(options.artifact);
  graphwright::RequireFeatures(options.artifact);
  gww::MappedFile weights_file(options.artifact + "/weights.bin"), inputs_file(options.inputs);
  auto weights = gww::Read(weights_file), inputs = gww::Read(inputs_file);
  auto machine = OpenMachine(options);
  graphwright::CheckWeights(machine, weights);
  ffi::Array<ffi::Tensor> packed;
  for (auto& weight : weights) packed.push_back(ToDevice(weight, options.device));
  const graphwright::Batches batches(machine);
  std::vector<std::vector<int64_t>> shapes;
  for (const auto& input : inputs) shapes.push_back(input.shape);
  std::vector<Call> calls;
  for (const auto& piece : batches.Plan(shapes)) calls.push_back(Cut(inputs, batches, piece));
  for (Call& call : calls) {
    for (auto& input : call.inputs) call.arguments.emplace_back(ToDevice(input, options.device));
    call.arguments.emplace_back(packed);
  }
  auto wait = ffi::Function::GetGlobalRequired("runtime.Device_StreamSync");
  for (int run = 0; run < options.runs; ++run) {
    auto start = std::chrono::steady_clock::now();
    for (Call& call : calls) {
      ffi::Any result;
      std::vector<ffi::AnyView> views(call.arguments.begin(), call.arguments.end());
      auto program = *machine->GetFunction(call.piece.entry(), true);
      program.CallPacked(views.data(), static_cast<int32_t>(views.size()), &result);
      call.outputs = Outputs(result);
    }
    if (options.device.device_type != kDLCPU) wait(options.device, static_cast<int64_t>(0));
    std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - start;
    std::cout << "run " << run << ": " << elapsed.count() << " ms" << std::endl;
  }
  WriteOutputs(options.outputs, calls);
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
