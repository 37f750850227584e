// SPDX-License-Identifier: Apache-2.0
// The steps of every binding: check, guard the device, allocate, find the stream. Python checks
// arguments first, with messages for users (functional.py). The checks here keep a direct caller of
// torch.ops inside its memory.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "cpu/parallel.h"
#include "shared/error_flags.h"
#include "shared/hash.h"
#include "shared/scalar_types.h"

#if defined(DYNPRUNE_WITH_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace dynprune {
namespace bindings {

using torch::stable::Tensor;
using Dtype = torch::headeronly::ScalarType;

// Every torch makes std::runtime_error a RuntimeError in Python, and std::out_of_range an
// IndexError. Not std::invalid_argument: a ValueError up to torch 2.14, a RuntimeError since 2.15.
template <class Error = std::runtime_error, class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(message.str());
}
template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

ScalarType scalar_type(const Tensor& t, const char* name);  // float32, float16, bfloat16 or float64
IndexType index_type(const Tensor& t, const char* name);    // int64, int32 or uint8
void check_memory(const Tensor& t, const char* name);       // its storage was not freed
void check_vector(const Tensor& t, const char* name, int64_t length);  // likewise
void check_dtype(const Tensor& t, const char* name, Dtype dtype, const char* dtype_name);
void check_same_device(const Tensor& t, const char* name, const Tensor& reference);

// From the two arguments of an op; seed_tensor, if given, lies on the device of `like`.
Seed checked_seed(const std::optional<Tensor>& seed_tensor, int64_t seed, const Tensor& like);

// A tensor without gaps, copied on its device where it has some.
Tensor dense(const Tensor& t);
// An uninitialised tensor on the device of `like`.
Tensor allocate(const Tensor& like, std::initializer_list<int64_t> sizes, Dtype dtype);
Tensor allocate_bytes(const Tensor& like, size_t bytes);

// torch's intra-op thread pool, as the CPU launchers take it.
cpu::Parallel torch_threads();

// Throws the error that a CPU launcher found: IndexError for targets and ids, RuntimeError for
// weights and probabilities, of which dynprune_cuda/_ops/errors.py makes a ValueError.
void raise_if_bad(const DataStatus& status, int64_t limit);

// True if the tensor lies on a GPU that this build has kernels for; throws if the build has none.
bool on_cuda(const Tensor& t);

#if defined(DYNPRUNE_WITH_CUDA)
// Makes the tensor's device current, and holds its stream and its error records.
class CudaScope {
 public:
  explicit CudaScope(const Tensor& t);
  cudaStream_t stream() const { return stream_; }
  ErrorRecord* errors() const;

 private:
  int device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};
void cuda_check(cudaError_t error, const char* what);

// The last argument of run_on_device: a function body that returns a cudaError_t, knows `scope`,
// and is compiled only where there are kernels.
#define DYNPRUNE_ON_CUDA(...) [&](const CudaScope& scope)->cudaError_t __VA_ARGS__
#else
#define DYNPRUNE_ON_CUDA(...) nullptr
#endif

// Calls on_cpu(), or on_cuda(scope) if `like` lies on a GPU. `what` completes "CUDA error while".
//   run_on_device(t, "adding", [&] { cpu::add(...); },
//                 DYNPRUNE_ON_CUDA({ return cuda::launch_add(..., scope.stream()); }));
template <class OnCpu, class OnCuda>
void run_on_device(const Tensor& like, [[maybe_unused]] const char* what, const OnCpu& on_cpu,
                   [[maybe_unused]] const OnCuda& launch) {
  if (!on_cuda(like)) return on_cpu();
#if defined(DYNPRUNE_WITH_CUDA)
  const CudaScope scope(like);
  cuda_check(launch(scope), what);
#endif
}

}  // namespace bindings
}  // namespace dynprune
