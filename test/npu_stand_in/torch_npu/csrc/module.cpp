// What Python sees; torch_npu/ builds torch.npu from it.
#include "stand_in.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/utils/pybind.h>

namespace stand_in {
namespace {

// PyTorch 2.6 has no fallback for the device's autograd key, so c10d's operators fail there; and no
// version has one for its autocast key.
void let_through(c10::DispatchKey key) {
  static auto* handles = new std::vector<c10::RegistrationHandleRAII>;
  auto& dispatcher = c10::Dispatcher::singleton();
  if (dispatcher.hasBackendFallbackForDispatchKey(key)) return;
  handles->push_back(
      dispatcher.registerFallback(key, c10::KernelFunction::makeFallthrough(), "npu stand-in"));
}

int exchange_device(int index) {
  const int before = current_device();
  if (index >= 0) set_device(DeviceIndex(index));
  return before;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  let_through(c10::DispatchKey::AutogradPrivateUse1);
  let_through(c10::DispatchKey::AutocastPrivateUse1);

  m.def("device_count", &device_count);
  m.def("current_device", [] { return int(current_device()); });
  m.def("set_device", [](int index) { set_device(DeviceIndex(index)); });
  m.def("exchange_device", &exchange_device);
  m.def("is_in_bad_fork", &is_in_bad_fork);
  m.def("default_generator", [](int index) { return default_generator(DeviceIndex(index)); });

  m.def("count_host_sync", [](const std::string& reason) { count_host_sync(reason); });
  m.def("host_syncs", &host_syncs);
  m.def("reset_host_syncs", &reset_host_syncs);

  m.def("memory_allocated", [](int index) { return memory_allocated(DeviceIndex(index)); });
  m.def("max_memory_allocated", [](int index) { return max_memory_allocated(DeviceIndex(index)); });
  m.def("reset_max_memory_allocated",
        [](int index) { reset_max_memory_allocated(DeviceIndex(index)); });

  m.def("saturates", &saturates);
  m.def("get_overflow", [](int index) { return get_overflow(DeviceIndex(index)); });
  m.def("clear_overflow", [](int index) { clear_overflow(DeviceIndex(index)); });

  m.def("hccl_over", &hccl_over);
}

}  // namespace stand_in
