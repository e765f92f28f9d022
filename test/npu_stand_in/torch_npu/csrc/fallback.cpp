// Every operator that kernels.cpp does not claim comes here, boxed: its tensors are re-labelled as
// CPU tensors over the same bytes, the CPU's kernel runs, and the results are re-labelled back.
//
// Nothing is copied, so what a kernel writes is written, including what its schema does not admit
// to: native_batch_norm updates its running statistics without an alias annotation, and a fallback
// that copies (at::native::cpu_fallback) loses them silently. Results are the CPU's to the bit.
#include "stand_in.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/CPUAllocator.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <set>

namespace stand_in {
namespace {

using Name = std::string_view;

// ---- What a real device would not do, or not without being noticed ----

// Operators that torch_npu's tables list as falling back to the host's CPU. There they only cost
// time, silently; here they are refused.
bool falls_back_to_host(Name name) {
  static const std::set<Name> names = {"aten::hardsigmoid", "aten::hardsigmoid_",
                                       "aten::hardsigmoid_backward"};
  return names.count(name) > 0;
}

bool has_mask(const c10::IValue& indices) {
  for (const std::optional<at::Tensor> index : indices.toOptionalTensorVector())
    if (index && (index->scalar_type() == at::kBool || index->scalar_type() == at::kByte)) return true;
  return false;
}

// The host must know a value, or the shape of a result, that only the device has.
bool reads_back(Name name, const at::ArrayRef<c10::IValue> arguments) {
  static const std::set<Name> names = {
      "aten::_local_scalar_dense", "aten::equal",    "aten::nonzero",
      "aten::masked_select",       "aten::_unique2", "aten::unique_dim",
      "aten::unique_consecutive",  "aten::bincount", "aten::unique_dim_consecutive"};
  // Reading by a mask calls nonzero itself; writing by one does so inside of the kernel.
  return names.count(name) || (name == "aten::_index_put_impl_" && has_mask(arguments[1]));
}

// A copy between host and device is waited for, unless the host's side is pinned and the caller
// said that it need not be.
void count_copy(const at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  if (is_npu(to) == is_npu(from)) return;
  const at::Tensor& host = is_npu(to) ? from : to;
  if (non_blocking && is_pinned(host.const_data_ptr())) return;
  count_host_sync(is_npu(to) ? "copy host to device" : "copy device to host");
}

// ---- Chips that saturate ----

// Ascend 910A has no infinity: what overflows becomes the largest number, NaN becomes 0, and a flag
// that only explicit calls read says that it happened.
std::array<std::atomic<bool>, kMaxDevices> overflows;

void saturate(const at::Tensor& tensor, DeviceIndex device) {
  if (!tensor.defined() || !tensor.is_floating_point() || tensor.numel() == 0) return;
  if (at::isfinite(tensor).all().item<bool>()) return;
  overflows[device] = true;
  tensor.nan_to_num_();  // NaN to 0, infinities to the type's largest number
}

// ---- Re-labelling ----

void release_storage(void* storage) { delete static_cast<c10::Storage*>(storage); }

c10::Storage cpu_view_of(const c10::Storage& storage) {
  auto* owner = new c10::Storage(storage);
  c10::DataPtr data(const_cast<void*>(storage.data()), owner, &release_storage, Device(c10::kCPU));
  return c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(),
                                               storage.nbytes(), std::move(data),
                                               c10::GetCPUAllocator(), /*resizable=*/true);
}

at::Tensor label(c10::Storage storage, c10::DispatchKey key, const at::Tensor& like) {
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(std::move(storage),
                                                         c10::DispatchKeySet(key), like.dtype());
  auto* self = tensor.unsafeGetTensorImpl();
  self->set_sizes_and_strides(like.sizes(), like.strides());
  self->set_storage_offset(like.storage_offset());
  // A Python number does not take part in type promotion; without the mark it would.
  if (like.unsafeGetTensorImpl()->is_wrapped_number()) self->set_wrapped_number(true);
  return tensor;
}

// One call of one operator: which CPU tensor stands for which tensor of the device.
class Call {
 public:
  explicit Call(Name name) : name_(name) {}

  DeviceIndex device = -1;

  at::Tensor to_cpu(const at::Tensor& tensor, bool is_in_list, bool is_written) {
    if (!tensor.defined()) return tensor;
    if (!is_npu(tensor)) {
      // A number of the host may join (PyTorch's own rule); a tensor left behind may not. A lone
      // one, written by nobody, is such a number.
      if (tensor.dim() > 0 || is_in_list || is_written) has_host_tensor_ = true;
      host_tensors_.push_back(tensor.unsafeGetTensorImpl());
      return tensor;
    }
    TORCH_CHECK(tensor.layout() == at::kStrided, "npu: ", name_, " of a ", tensor.layout(),
                " tensor is not supported");
    const auto index = tensor.device().index();
    if (device < 0) device = index;
    TORCH_CHECK(device == index || name_ == "aten::copy_",
                "Expected all tensors to be on the same device, but found at least two devices, "
                "npu:", int(device), " and npu:", int(index), "! (", name_, ")");
    for (auto& pair : pairs_)
      if (pair.npu.is_same(tensor)) return pair.cpu;
    auto cpu = label(storage_for(tensor), c10::DispatchKey::CPU, tensor);
    pairs_.push_back({tensor, cpu, const_cast<void*>(cpu.storage().data())});
    return cpu;
  }

  void check_hosts() const {
    TORCH_CHECK(!has_host_tensor_ || name_ == "aten::copy_",
                "Expected all tensors to be on the same device, but found at least two devices, "
                "npu:", int(device), " and cpu! (", name_, ")");
  }

  // The kernel may have resized or restrided what it writes to.
  void take_over_changes() {
    const size_t count = pairs_.size();
    for (size_t index = 0; index < count; ++index) take_over(pairs_[index]);
  }

  at::Tensor to_npu(const at::Tensor& cpu) {
    if (!cpu.defined() || !cpu.device().is_cpu()) return cpu;
    for (auto* host : host_tensors_)
      if (host == cpu.unsafeGetTensorImpl()) return cpu;
    for (auto& pair : pairs_)
      if (pair.cpu.is_same(cpu)) return pair.npu;
    check_dtype(cpu.scalar_type(), cpu.numel());
    auto npu = label(storage_of_result(cpu), c10::DispatchKey::PrivateUse1, cpu);
    pairs_.push_back({npu, cpu, const_cast<void*>(cpu.storage().data())});
    return npu;
  }

  void saturate_all() const {
    for (auto& pair : pairs_) saturate(pair.cpu, device);
  }

 private:
  struct Pair {
    at::Tensor npu, cpu;
    void* data;  // where the CPU tensor's bytes were before the call
  };

  c10::Storage storage_for(const at::Tensor& tensor) const {
    for (auto& pair : pairs_)
      if (pair.npu.storage().unsafeGetStorageImpl() == tensor.storage().unsafeGetStorageImpl())
        return pair.cpu.storage();
    return cpu_view_of(tensor.storage());
  }

  // A result over an argument's bytes is a view of it; otherwise the device adopts the bytes.
  c10::Storage storage_of_result(const at::Tensor& cpu) const {
    auto* storage = cpu.storage().unsafeGetStorageImpl();
    for (auto& pair : pairs_)
      if (pair.cpu.storage().unsafeGetStorageImpl() == storage) return pair.npu.storage();
    return c10::make_intrusive<c10::StorageImpl>(
        c10::StorageImpl::use_byte_size_t(), cpu.storage().nbytes(), adopt(cpu.storage(), device),
        device_allocator(), /*resizable=*/true);
  }

  void take_over(Pair& pair) {
    auto* storage = pair.cpu.storage().unsafeGetStorageImpl();
    if (storage->data() != pair.data) {
      auto* ours = pair.npu.storage().unsafeGetStorageImpl();
      ours->set_data_ptr_noswap(adopt(pair.cpu.storage(), pair.npu.device().index()));
      ours->set_nbytes(storage->nbytes());
      for (auto& other : pairs_)
        if (other.cpu.storage().unsafeGetStorageImpl() == storage)
          other.data = const_cast<void*>(storage->data());
    }
    if (pair.cpu.sizes() != pair.npu.sizes() || pair.cpu.strides() != pair.npu.strides()) {
      pair.npu.unsafeGetTensorImpl()->set_sizes_and_strides(pair.cpu.sizes(), pair.cpu.strides());
      pair.npu.unsafeGetTensorImpl()->set_storage_offset(pair.cpu.storage_offset());
    }
  }


  Name name_;
  c10::SmallVector<Pair, 8> pairs_;
  c10::SmallVector<c10::TensorImpl*, 2> host_tensors_;
  bool has_host_tensor_ = false;
};

c10::IValue to_cpu(Call& call, const c10::IValue& value, bool is_written) {
  if (value.isTensor()) return call.to_cpu(value.toTensor(), false, is_written);
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor tensor : value.toTensorList())
      list.push_back(call.to_cpu(tensor, true, is_written));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const std::optional<at::Tensor> tensor : value.toOptionalTensorList())
      list.push_back(tensor ? std::optional<at::Tensor>(call.to_cpu(*tensor, true, is_written))
                            : std::nullopt);
    return list;
  }
  if (value.isDevice() && value.toDevice().type() == kNPU) {
    call.device = checked(value.toDevice().index());
    return Device(c10::kCPU);
  }
  if (value.isGenerator()) return cpu_generator(value.toGenerator());
  return value;
}

c10::IValue to_npu(Call& call, const c10::IValue& value) {
  if (value.isTensor()) return call.to_npu(value.toTensor());
  if (!value.isTensorList()) return value;
  c10::List<at::Tensor> list;
  for (const at::Tensor tensor : value.toTensorList()) list.push_back(call.to_npu(tensor));
  return list;
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto& formals = schema.arguments();
  const std::string& name = schema.name();
  const auto arguments = at::ArrayRef<c10::IValue>(*stack).slice(stack->size() - formals.size());
  const size_t base = stack->size() - formals.size();

  static const bool is_traced = std::getenv("NPU_STAND_IN_TRACE") != nullptr;
  if (is_traced) std::fprintf(stderr, "[npu] %s.%s\n", name.c_str(), schema.overload_name().c_str());
  TORCH_CHECK(!falls_back_to_host(name), "npu: ", name,
              " may fall back to the host's CPU on a real device; write it with other operators");
  if (name == "aten::copy_") {
    count_copy(arguments[0].toTensor(), arguments[1].toTensor(), arguments[2].toBool());
  } else if (reads_back(name, arguments)) {
    count_host_sync(name);
  }

  Call call(name);
  bool writes = false;
  for (size_t index = 0; index < formals.size(); ++index) {
    const auto* alias = formals[index].alias_info();
    const bool is_written = alias && alias->isWrite();
    writes = writes || is_written;
    (*stack)[base + index] = to_cpu(call, (*stack)[base + index], is_written);
  }
  if (call.device < 0) call.device = current_device();
  checked(call.device);
  call.check_hosts();
  // Where no generator is given the kernel would draw from the CPU's, and seeding the device would
  // have no effect.
  for (size_t index = 0; index < formals.size(); ++index)
    if (formals[index].name() == "generator" && (*stack)[base + index].isNone())
      (*stack)[base + index] = cpu_generator(default_generator(call.device));

  {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  }

  if (writes) call.take_over_changes();
  for (size_t index = stack->size() - schema.returns().size(); index < stack->size(); ++index)
    (*stack)[index] = to_npu(call, (*stack)[index]);
  if (saturates()) call.saturate_all();
}

}  // namespace

// A single number may be float64: PyTorch's GradScaler takes its reciprocal in it.
void check_dtype(at::ScalarType dtype, int64_t elements) {
  TORCH_CHECK(dtype != at::kDouble || elements <= 1,
              "npu: a float64 tensor was asked for, which a real device would turn into float32 or "
              "compute on the host");
}

at::Tensor as_cpu(const at::Tensor& tensor) {
  if (!is_npu(tensor)) return tensor;
  return label(cpu_view_of(tensor.storage()), c10::DispatchKey::CPU, tensor);
}

bool saturates() {
  static const bool is_asked_for = std::getenv("NPU_STAND_IN_SATURATES") != nullptr;
  return is_asked_for;
}
bool get_overflow(DeviceIndex device) { return overflows[checked(device)]; }
void clear_overflow(DeviceIndex device) { overflows[checked(device)] = false; }

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  // A composite kernel wins over a fallback. These would take their tensors apart, and then choose
  // other kernels than the CPU does (for channels_last convolutions, for example).
  m.impl("copy_", torch::CppFunction::makeFromBoxedFunction<&fallback>());
  m.impl("convolution", torch::CppFunction::makeFromBoxedFunction<&fallback>());
  m.impl("convolution_backward", torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

}  // namespace stand_in
