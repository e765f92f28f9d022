// Random numbers: a generator a card, which draws what a CPU generator of the same seed draws.
#include "stand_in.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/GeneratorForPrivateuseone.h>
#include <torch/version.h>

#include <vector>

namespace stand_in {
namespace {

struct NpuGenerator final : c10::GeneratorImpl {
  at::Generator inner = at::detail::createCPUGenerator();

  explicit NpuGenerator(DeviceIndex index)
      : c10::GeneratorImpl(Device(kNPU, index),
                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)) {}

  static c10::DeviceType device_type() { return kNPU; }
  c10::GeneratorImpl* impl() const { return inner.unsafeGetGeneratorImpl(); }

  void set_current_seed(uint64_t seed) override { impl()->set_current_seed(seed); }
  uint64_t current_seed() const override { return impl()->current_seed(); }
  uint64_t seed() override { return impl()->seed(); }
  void set_offset(uint64_t offset) override { impl()->set_offset(offset); }
  uint64_t get_offset() const override { return impl()->get_offset(); }
  void set_state(const c10::TensorImpl& state) override { impl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return impl()->get_state(); }
  NpuGenerator* clone_impl() const override {
    auto* copy = new NpuGenerator(device_.index());
    copy->inner = inner.clone();
    return copy;
  }
};

}  // namespace

at::Generator new_generator(DeviceIndex device) {
  return at::make_generator<NpuGenerator>(checked(device));
}

#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 7
REGISTER_GENERATOR_PRIVATEUSE1(new_generator)  // newer versions ask the hooks, and warn about this
#endif

const at::Generator& default_generator(DeviceIndex device) {
  static const auto* generators = [] {
    auto* made = new std::vector<at::Generator>;
    for (int index = 0; index < device_count(); ++index) made->push_back(new_generator(index));
    return made;
  }();
  return (*generators)[checked(device)];
}

at::Generator cpu_generator(const at::Generator& generator) {
  if (generator.device().type() != kNPU) return generator;
  return static_cast<NpuGenerator*>(generator.unsafeGetGeneratorImpl())->inner;
}

}  // namespace stand_in
