// One translation unit: PyTorch's headers take longer to compile than everything here.
#include "device.cpp"
#include "fallback.cpp"
#include "generator.cpp"
#include "hccl.cpp"
#include "kernels.cpp"
#include "memory.cpp"
#include "module.cpp"
