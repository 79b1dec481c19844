// Runs an artifact with one float32 input on a ramp and prints the outputs' shapes and largest elements.
//
//   g++ -std=c++17 -O2 example.cc $(python -m graphwright.backends.runner --flags) -o example
//   ./example DIR 1,3,224,224
#include <algorithm>
#include <iostream>
#include <sstream>

#include "model.h"

int main(int argc, char** argv) try {
  if (argc != 3) throw std::runtime_error("usage: example DIR SHAPE, such as 1,3,224,224");
  std::vector<int64_t> shape;
  size_t size = 1;
  std::stringstream words(argv[2]);
  for (std::string word; std::getline(words, word, ',');) {
    shape.push_back(std::stoll(word));
    size *= static_cast<size_t>(shape.back());
  }
  std::vector<float> ramp(size);
  for (size_t i = 0; i < size; ++i) ramp[i] = static_cast<float>(i) / static_cast<float>(size) - 0.5f;

  graphwright::Model model(argv[1], /*threads=*/1);
  for (const graphwright::Output& output : model.Run({{ramp.data(), shape}})) {
    const float* values = output.data<float>();
    const float* largest = std::max_element(values, values + output.bytes() / sizeof(float));
    std::cout << "[";
    for (int64_t extent : output.shape()) std::cout << " " << extent;
    std::cout << " ] largest element " << *largest << " at " << largest - values << std::endl;
  }
  return 0;
} catch (const tvm::ffi::Error& error) {
  std::cerr << "example: " << error.message() << std::endl;
  return 2;
} catch (const std::exception& error) {
  std::cerr << "example: " << error.what() << std::endl;
  return 2;
}
