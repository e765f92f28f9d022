// Who owns which bytes: the device's allocator with its books, and "pinned" host memory.
#include "stand_in.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <mutex>

namespace stand_in {
namespace {

struct Books {
  std::atomic<int64_t> current{0};
  std::atomic<int64_t> highest{0};
};
std::array<Books, kMaxDevices> books;

// Keeps host memory alive for as long as the device uses it, and counts it as the device's.
struct Block {
  c10::DataPtr allocated;  // either memory of its own,
  c10::Storage adopted;    // or the storage that a CPU kernel made for its result
  int64_t bytes;
  DeviceIndex device;

  static void release(void* self) {
    auto* block = static_cast<Block*>(self);
    books[block->device].current -= block->bytes;
    delete block;
  }
};

c10::DataPtr enter(void* data, Block* block) {
  auto& book = books[block->device];
  const int64_t now = book.current += block->bytes;
  int64_t seen = book.highest;
  while (now > seen && !book.highest.compare_exchange_weak(seen, now)) {
  }
  return c10::DataPtr(data, block, &Block::release, Device(kNPU, block->device));
}

struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    const auto device = checked(-1);
    auto memory = c10::GetCPUAllocator()->allocate(bytes);
    void* data = memory.get();
    return enter(data, new Block{std::move(memory), c10::Storage(), int64_t(bytes), device});
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
DeviceAllocator the_device_allocator;
REGISTER_ALLOCATOR(kNPU, &the_device_allocator);

// Ordinary host memory that remembers having been asked for as pinned.
struct PinnedAllocator final : c10::Allocator {
  static std::mutex mutex;
  static std::map<const char*, size_t> sizes;

  static void release(void* data) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      sizes.erase(static_cast<const char*>(data));
    }
    c10::GetCPUAllocator()->raw_deallocate(data);
  }
  c10::DataPtr allocate(size_t bytes) override {
    bytes = std::max<size_t>(bytes, 1);
    void* data = c10::GetCPUAllocator()->raw_allocate(bytes);
    std::lock_guard<std::mutex> lock(mutex);
    sizes[static_cast<const char*>(data)] = bytes;
    return c10::DataPtr(data, data, &release, Device(c10::kCPU));
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
std::mutex PinnedAllocator::mutex;
std::map<const char*, size_t> PinnedAllocator::sizes;
PinnedAllocator the_pinned_allocator;

}  // namespace

c10::Allocator* device_allocator() { return &the_device_allocator; }
c10::Allocator* pinned_allocator() { return &the_pinned_allocator; }

bool is_pinned(const void* address) {
  const auto* byte = static_cast<const char*>(address);
  std::lock_guard<std::mutex> lock(PinnedAllocator::mutex);
  auto next = PinnedAllocator::sizes.upper_bound(byte);
  if (next == PinnedAllocator::sizes.begin()) return false;
  --next;
  return byte < next->first + next->second;  // a slice of pinned memory is pinned, too
}

c10::DataPtr adopt(c10::Storage storage, DeviceIndex device) {
  void* data = storage.mutable_data();
  const auto bytes = int64_t(storage.nbytes());
  return enter(data, new Block{c10::DataPtr(), std::move(storage), bytes, device});
}

void resize_storage(const c10::Storage& storage, size_t bytes) {
  c10::DeviceGuard guard(storage.device());
  auto memory = the_device_allocator.allocate(bytes);
  if (storage.data()) std::memcpy(memory.get(), storage.data(), std::min(bytes, storage.nbytes()));
  auto* self = storage.unsafeGetStorageImpl();
  self->set_data_ptr_noswap(std::move(memory));
  self->set_nbytes(bytes);
}

int64_t memory_allocated(DeviceIndex device) { return books[checked(device)].current; }
int64_t max_memory_allocated(DeviceIndex device) { return books[checked(device)].highest; }
void reset_max_memory_allocated(DeviceIndex device) {
  auto& book = books[checked(device)];
  book.highest = book.current.load();
}

}  // namespace stand_in
