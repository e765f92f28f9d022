// The operators a device must bring itself: memory, views, storages; and what autocast casts.
#include "stand_in.h"

#include <ATen/EmptyTensor.h>
#include <ATen/NativeFunctions.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

namespace stand_in {
namespace {

using c10::SymInt;
using c10::SymIntArrayRef;
using std::optional;

const c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

at::ScalarType checked_dtype(optional<at::ScalarType> given, optional<bool> pin_memory,
                             c10::IntArrayRef sizes) {
  TORCH_CHECK(!pin_memory.value_or(false), "npu: only CPU tensors can be pinned");
  const auto dtype = c10::dtype_or_default(given);
  check_dtype(dtype, c10::multiply_integers(sizes));
  return dtype;
}

at::Tensor empty(SymIntArrayRef size, optional<at::ScalarType> dtype, optional<at::Layout>,
                 optional<Device> device, optional<bool> pin, optional<at::MemoryFormat> format) {
  c10::OptionalDeviceGuard guard(device);
  const auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  return at::detail::empty_generic(sizes, device_allocator(), kKeys,
                                   checked_dtype(dtype, pin, sizes), format);
}

at::Tensor empty_strided(SymIntArrayRef size, SymIntArrayRef stride, optional<at::ScalarType> dtype,
                         optional<at::Layout>, optional<Device> device, optional<bool> pin) {
  c10::OptionalDeviceGuard guard(device);
  const auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  return at::detail::empty_strided_generic(sizes, C10_AS_INTARRAYREF_SLOW(stride),
                                           device_allocator(), kKeys,
                                           checked_dtype(dtype, pin, sizes));
}

at::Tensor as_strided(const at::Tensor& self, SymIntArrayRef size, SymIntArrayRef stride,
                      optional<SymInt> offset) {
  optional<int64_t> start;
  if (offset) start = offset->guard_int(__FILE__, __LINE__);
  return at::native::as_strided_tensorimpl(self, C10_AS_INTARRAYREF_SLOW(size),
                                           C10_AS_INTARRAYREF_SLOW(stride), start);
}

at::Tensor view(const at::Tensor& self, SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& to, bool non_blocking) {
  to.copy_(self, non_blocking);  // ours, in fallback.cpp
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& to) {
  to.resize_(self.sizes());
  return copy_from(self, to, false);
}

// ---- set_: a tensor over another storage ----

at::Tensor& set_at_offset(at::Tensor& self, at::Storage storage, SymInt offset, SymIntArrayRef size,
                          SymIntArrayRef stride) {
  TORCH_CHECK(storage.device() == self.device(), "set_: the storage is on ", storage.device(),
              ", the tensor on ", self.device());
  const auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  const auto strides = C10_AS_INTARRAYREF_SLOW(stride);
  const int64_t start = offset.guard_int(__FILE__, __LINE__);
  auto* tensor = self.unsafeGetTensorImpl();
  tensor->set_storage_keep_dtype(std::move(storage));
  if (strides.size() == sizes.size()) {
    tensor->set_sizes_and_strides(sizes, strides);
  } else {
    tensor->set_sizes_contiguous(sizes);
  }
  tensor->set_storage_offset(start);
  if (self.numel() == 0) return self;
  int64_t elements = start + 1;
  for (int64_t axis = 0; axis < self.dim(); ++axis)
    elements += (self.size(axis) - 1) * self.stride(axis);
  const size_t bytes = size_t(elements) * self.itemsize();
  if (bytes > self.storage().nbytes()) resize_storage(self.storage(), bytes);
  return self;
}

at::Tensor& set_storage(at::Tensor& self, at::Storage storage) {
  const SymInt elements = int64_t(storage.nbytes() / self.itemsize());
  return set_at_offset(self, std::move(storage), 0, SymIntArrayRef(elements), {});
}

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  return set_at_offset(self, source.storage(), source.storage_offset(),
                       c10::fromIntArrayRefSlow(source.sizes()),
                       c10::fromIntArrayRefSlow(source.strides()));
}

at::Tensor& set_nothing(at::Tensor& self) {
  c10::DeviceGuard guard(self.device());
  c10::Storage storage = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), 0, device_allocator()->allocate(0), device_allocator(),
      /*resizable=*/true);
  const SymInt none = 0;
  return set_at_offset(self, std::move(storage), 0, SymIntArrayRef(none), {});
}

void record_stream(at::Tensor&, at::Stream) {}  // there is one stream

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", as_strided);
  m.impl("view", view);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Storage_storage_offset", set_at_offset);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("set_", set_nothing);
  m.impl("record_stream", record_stream);
}

// ---- Autocast: PyTorch's own lists, which are not registered for a device from outside ----

namespace autocast_lists {

using namespace at;  // the macros name ATen's types unqualified
using namespace at::autocast;
#define STAND_IN_HALF(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define STAND_IN_FLOAT(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define STAND_IN_FLOAT_BY_DTYPE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
#define STAND_IN_WIDEST(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(STAND_IN_HALF)
  AT_FORALL_FP32(STAND_IN_FLOAT)
  AT_FORALL_FP32_SET_OPT_DTYPE(STAND_IN_FLOAT_BY_DTYPE)
  AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE(KERNEL_DIFFERENT_REDISPATCH_SIGNATURE_PRIVATEUSEONE)
  AT_FORALL_PROMOTE(STAND_IN_WIDEST)
}

}  // namespace autocast_lists
}  // namespace stand_in
