// The process-group backend "hccl": gloo over the same bytes.
#include "stand_in.h"

namespace stand_in {
namespace {

using Tensors = std::vector<at::Tensor>;
using TensorLists = std::vector<Tensors>;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;

// gloo's work, whose results are the tensors of the device.
struct HcclWork final : c10d::Work {
  HcclWork(WorkPtr gloo, Tensors results) : gloo_(std::move(gloo)), results_(std::move(results)) {}

  bool isCompleted() override { return gloo_->isCompleted(); }
  bool isSuccess() const override { return gloo_->isSuccess(); }
  std::exception_ptr exception() const override { return gloo_->exception(); }
  int sourceRank() const override { return gloo_->sourceRank(); }
  bool wait(std::chrono::milliseconds timeout) override { return gloo_->wait(timeout); }
  void synchronize() override { gloo_->synchronize(); }
  void abort() override { gloo_->abort(); }
  std::vector<at::Tensor> result() override { return results_; }

  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override {
    return gloo_->getFuture()->then(
        [results = results_](c10::ivalue::Future& future) -> c10::IValue {
          if (future.hasError()) std::rethrow_exception(future.exception_ptr());
          return c10::IValue(results);
        },
        c10::ListType::ofTensors());
  }

 private:
  WorkPtr gloo_;
  Tensors results_;
};

at::Tensor on_cpu(const at::Tensor& tensor) {
  TORCH_CHECK(is_npu(tensor), "hccl: No backend type associated with device type ",
              tensor.device().type(), "; tensors must be on an npu");
  return as_cpu(tensor);
}

Tensors on_cpu(const Tensors& tensors) {
  Tensors all;
  for (auto& tensor : tensors) all.push_back(on_cpu(tensor));
  return all;
}

TensorLists on_cpu(const TensorLists& lists) {
  TensorLists all;
  for (auto& list : lists) all.push_back(on_cpu(list));
  return all;
}

Tensors joined(const TensorLists& lists) {
  Tensors all;
  for (auto& list : lists) all.insert(all.end(), list.begin(), list.end());
  return all;
}

WorkPtr work(WorkPtr gloo, Tensors results) {
  return c10::make_intrusive<HcclWork>(std::move(gloo), std::move(results));
}

// gloo takes its tensors by reference and keeps them until the work is done.
struct Hccl final : c10d::Backend {
  explicit Hccl(c10::intrusive_ptr<c10d::Backend> gloo)
      : c10d::Backend(gloo->getRank(), gloo->getSize()), gloo_(std::move(gloo)) {}

  const std::string getBackendName() const override { return "hccl"; }

  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    auto cpu = on_cpu(tensors);
    return work(gloo_->broadcast(cpu, options), tensors);
  }
  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    auto cpu = on_cpu(tensors);
    return work(gloo_->allreduce(cpu, options), tensors);
  }
  WorkPtr allreduce_coalesced(Tensors& tensors,
                              const c10d::AllreduceCoalescedOptions& options) override {
    auto cpu = on_cpu(tensors);
    return work(gloo_->allreduce_coalesced(cpu, options), tensors);
  }
  WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& options) override {
    auto cpu = on_cpu(tensors);
    return work(gloo_->reduce(cpu, options), tensors);
  }
  WorkPtr allgather(TensorLists& outputs, Tensors& inputs,
                    const c10d::AllgatherOptions& options) override {
    auto to = on_cpu(outputs);
    auto from = on_cpu(inputs);
    return work(gloo_->allgather(to, from, options), joined(outputs));
  }
  // gloo divides the large tensor along its first axis, HCCL by bytes: hence the flat views.
  WorkPtr _allgather_base(at::Tensor& output, at::Tensor& input,
                          const c10d::AllgatherOptions& options) override {
    auto to = on_cpu(output).view(-1);
    auto from = on_cpu(input).view(-1);
    return work(gloo_->_allgather_base(to, from, options), {output});
  }
  WorkPtr allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::AllgatherOptions& options) override {
    auto to = on_cpu(outputs);
    auto from = on_cpu(inputs);
    return work(gloo_->allgather_into_tensor_coalesced(to, from, options), outputs);
  }
  WorkPtr gather(TensorLists& outputs, Tensors& inputs,
                 const c10d::GatherOptions& options) override {
    auto to = on_cpu(outputs);
    auto from = on_cpu(inputs);
    return work(gloo_->gather(to, from, options), joined(outputs));
  }
  WorkPtr scatter(Tensors& outputs, TensorLists& inputs,
                  const c10d::ScatterOptions& options) override {
    auto to = on_cpu(outputs);
    auto from = on_cpu(inputs);
    return work(gloo_->scatter(to, from, options), outputs);
  }
  WorkPtr reduce_scatter(Tensors& outputs, TensorLists& inputs,
                         const c10d::ReduceScatterOptions& options) override {
    auto to = on_cpu(outputs);
    auto from = on_cpu(inputs);
    return work(gloo_->reduce_scatter(to, from, options), outputs);
  }
  WorkPtr _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                               const c10d::ReduceScatterOptions& options) override {
    auto to = on_cpu(output).view(-1);
    auto from = on_cpu(input).view(-1);
    return work(gloo_->_reduce_scatter_base(to, from, options), {output});
  }
  WorkPtr alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<int64_t>& output_sizes,
                        std::vector<int64_t>& input_sizes,
                        const c10d::AllToAllOptions& options) override {
    auto to = on_cpu(output);
    auto from = on_cpu(input);
    return work(gloo_->alltoall_base(to, from, output_sizes, input_sizes, options), {output});
  }
  WorkPtr send(Tensors& tensors, int to, int tag) override {
    auto cpu = on_cpu(tensors);
    return work(gloo_->send(cpu, to, tag), tensors);
  }
  WorkPtr recv(Tensors& tensors, int from, int tag) override {
    auto cpu = on_cpu(tensors);
    return work(gloo_->recv(cpu, from, tag), tensors);
  }
  WorkPtr barrier(const c10d::BarrierOptions& options) override {
    count_host_sync("barrier");
    return work(gloo_->barrier(options), {});
  }

 private:
  c10::intrusive_ptr<c10d::Backend> gloo_;
};

}  // namespace

c10::intrusive_ptr<c10d::Backend> hccl_over(c10::intrusive_ptr<c10d::Backend> gloo) {
  return c10::make_intrusive<Hccl>(std::move(gloo));
}

}  // namespace stand_in
