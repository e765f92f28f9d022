// What the files of the stand-in share.
//
// The device's memory is host memory. A tensor of the device and a CPU tensor over the same bytes
// differ in nothing but their label, so every operator can run the CPU's kernel without a copy.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/Device.h>
#include <c10/core/Storage.h>
#include <c10/util/Exception.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace stand_in {

using c10::Device;
using c10::DeviceIndex;

constexpr auto kNPU = c10::DeviceType::PrivateUse1;
constexpr int kMaxDevices = 16;

// ---- device.cpp: which card, and when the host waits for it ----

int device_count();
DeviceIndex current_device();
void set_device(DeviceIndex index);

// The index itself, or the current card for -1. Raises where there is no such card, and in a process
// that was forked after its parent had used the device.
DeviceIndex checked(DeviceIndex index);
bool is_in_bad_fork();

// Note that a real device would have made the host wait here, and why.
void count_host_sync(std::string_view reason);
std::map<std::string, int64_t> host_syncs();
void reset_host_syncs();

// ---- memory.cpp: who owns which bytes ----

c10::Allocator* device_allocator();
c10::Allocator* pinned_allocator();
bool is_pinned(const void* address);
void resize_storage(const c10::Storage& storage, size_t bytes);

// The storage of a CPU tensor, to be owned by a tensor of the device.
c10::DataPtr adopt(c10::Storage storage, DeviceIndex device);

int64_t memory_allocated(DeviceIndex device);
int64_t max_memory_allocated(DeviceIndex device);
void reset_max_memory_allocated(DeviceIndex device);

// ---- generator.cpp: random numbers ----

const at::Generator& default_generator(DeviceIndex device);
at::Generator new_generator(DeviceIndex device);
at::Generator cpu_generator(const at::Generator& generator);  // what the CPU's kernels draw from

// ---- fallback.cpp: the CPU's kernels for the device's tensors ----

inline bool is_npu(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kNPU;
}

// A CPU tensor over the bytes of a tensor of the device; any other tensor is returned as it is.
at::Tensor as_cpu(const at::Tensor& tensor);

// Raises for a type that the device has not.
void check_dtype(at::ScalarType dtype, int64_t elements);

// Chips without infinities (see saturate): the flag that says that something overflowed.
bool saturates();
bool get_overflow(DeviceIndex device);
void clear_overflow(DeviceIndex device);

// ---- hccl.cpp: collectives ----

// A process-group backend for tensors of the device that lets gloo do the work.
c10::intrusive_ptr<c10d::Backend> hccl_over(c10::intrusive_ptr<c10d::Backend> gloo);

}  // namespace stand_in
