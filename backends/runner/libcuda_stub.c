/* Stands in for the NVIDIA driver on build machines, so that TVM's CUDA runtime loads and nvcc's output is embedded.
   Every call fails with CUDA_ERROR_NO_DEVICE. */
#define FAILS(name) \
  int name(void) { return 100; }

FAILS(cuDeviceGetName)
FAILS(cuFuncSetAttribute)
FAILS(cuGetErrorName)
FAILS(cuGetErrorString)
FAILS(cuLaunchKernelEx)
FAILS(cuModuleGetFunction)
FAILS(cuModuleLoadData)
FAILS(cuModuleUnload)
FAILS(cuTensorMapEncodeTiled)
