// The cards as PyTorch's core sees them: count, current one, streams, events, hooks.
#include "stand_in.h"

#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <mutex>

namespace stand_in {

// ---- Count and current card ----

int device_count() {
  static const int count = [] {
    const char* text = std::getenv("NPU_STAND_IN_DEVICES");
    const int wanted = text ? std::atoi(text) : 8;
    TORCH_CHECK(wanted >= 0 && wanted <= kMaxDevices, "NPU_STAND_IN_DEVICES is ", text,
                "; expected 0 to ", kMaxDevices);
    return wanted;
  }();
  return count;
}

// Per thread, as on a real device: backward runs in threads of its own, one a card.
static thread_local DeviceIndex current = 0;

static std::atomic<bool> is_used{false};
static std::atomic<bool> is_forked{false};

bool is_in_bad_fork() { return is_forked; }

DeviceIndex checked(DeviceIndex index) {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { is_forked = is_used.load(); });
  (void)registered;
  TORCH_CHECK(!is_forked, "Cannot re-initialize NPU in forked subprocess: the parent had used it");
  if (index < 0) index = current;
  TORCH_CHECK(index < device_count(), "npu: invalid device ordinal ", int(index), "; this host has ",
              device_count(), " (numbered from 0)");
  is_used = true;
  return index;
}

DeviceIndex current_device() { return current; }
void set_device(DeviceIndex index) { current = checked(index); }

// ---- Host syncs ----

static std::mutex sync_mutex;
static std::map<std::string, int64_t> sync_counts;

void count_host_sync(std::string_view reason) {
  std::lock_guard<std::mutex> lock(sync_mutex);
  ++sync_counts[std::string(reason)];
}

std::map<std::string, int64_t> host_syncs() {
  std::lock_guard<std::mutex> lock(sync_mutex);
  return sync_counts;
}

void reset_host_syncs() {
  std::lock_guard<std::mutex> lock(sync_mutex);
  sync_counts.clear();
}

// ---- Guard: what the autograd engine, streams and events go through ----

namespace {

// All work is done when the call returns, so there is one stream and an event is a point in time.
// Methods without `override` are virtual in newer versions of PyTorch only.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  using Clock = std::chrono::steady_clock;

  c10::DeviceType type() const override { return kNPU; }
  // The engine starts a thread per card; a wrong count here makes backward index out of bounds.
  DeviceIndex deviceCount() const noexcept override { return DeviceIndex(device_count()); }

  Device getDevice() const override { return Device(kNPU, current); }
  void setDevice(Device device) const override { set_device(device.index()); }
  void uncheckedSetDevice(Device device) const noexcept override {
    if (device.index() >= 0) current = device.index();
  }
  Device exchangeDevice(Device device) const override {
    const Device before(kNPU, current);
    set_device(device.index());
    return before;
  }

  c10::Stream getStream(Device device) const noexcept override {
    const auto index = device.index() < 0 ? current : device.index();
    return c10::Stream(c10::Stream::DEFAULT, Device(kNPU, index));
  }
  c10::Stream getDefaultStream(Device device) const { return getStream(device); }
  c10::Stream getStreamFromGlobalPool(Device device, bool) const { return getStream(device); }
  c10::Stream getNewStream(Device device, int) const { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override {
    return getStream(stream.device());
  }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override { count_host_sync("synchronize stream"); }
  void synchronizeDevice(const DeviceIndex) const { count_host_sync("synchronize"); }

  void record(void** event, const c10::Stream&, const DeviceIndex,
              const c10::EventFlag) const override {
    if (!*event) *event = new Clock::time_point;
    *static_cast<Clock::time_point*>(*event) = Clock::now();
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const { count_host_sync("synchronize event"); }
  void destroyEvent(void* event, const DeviceIndex) const noexcept override {
    delete static_cast<Clock::time_point*>(event);
  }
  double elapsedTime(void* from, void* to, const DeviceIndex) const {
    TORCH_CHECK(from && to, "npu: both events must be recorded before elapsed_time");
    const auto time = *static_cast<Clock::time_point*>(to) - *static_cast<Clock::time_point*>(from);
    return std::chrono::duration<double, std::milli>(time).count();
  }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// ---- Hooks: what torch.accelerator, pin_memory and torch.Generator go through ----

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const { return true; }
  bool isAvailable() const { return device_count() > 0; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }

  DeviceIndex deviceCount() const { return DeviceIndex(device_count()); }
  DeviceIndex getCurrentDevice() const { return current; }
  void setCurrentDevice(DeviceIndex index) const { set_device(index); }
  DeviceIndex exchangeDevice(DeviceIndex index) const {
    const auto before = current;
    set_device(index);
    return before;
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const { return exchangeDevice(index); }

  const at::Generator& getDefaultGenerator(DeviceIndex index) const override {
    return default_generator(index);
  }
  at::Generator getNewGenerator(DeviceIndex index) const { return new_generator(index); }

  bool isPinnedPtr(const void* address) const override { return is_pinned(address); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return pinned_allocator(); }
  Device getDeviceFromPtr(void*) const override { return Device(kNPU, current); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    resize_storage(storage, bytes);
  }
};

[[maybe_unused]] const bool are_hooks_registered = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  return true;
}();

}  // namespace
}  // namespace stand_in
