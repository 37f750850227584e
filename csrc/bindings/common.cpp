// SPDX-License-Identifier: Apache-2.0
#include "bindings/common.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <iterator>
#include <mutex>

namespace dynprune {
namespace bindings {

ScalarType scalar_type(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case Dtype::Float:
      return ScalarType::kFloat32;
    case Dtype::Half:
      return ScalarType::kFloat16;
    case Dtype::BFloat16:
      return ScalarType::kBFloat16;
    case Dtype::Double:
      return ScalarType::kFloat64;
    default:
      fail(name, " must be float32, float16, bfloat16 or float64");
  }
}

IndexType index_type(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case Dtype::Long:
      return IndexType::kInt64;
    case Dtype::Int:
      return IndexType::kInt32;
    case Dtype::Byte:
      return IndexType::kUInt8;
    default:
      fail(name, " must be int64, int32 or uint8");
  }
}

void check_memory(const Tensor& t, const char* name) {
  int64_t bytes = 0;
  const bool known = aoti_torch_get_storage_size(t.get(), &bytes) == TORCH_SUCCESS;
  check(known && (bytes > 0 || t.numel() == 0), name, " has no memory: its storage was freed");
}

void check_vector(const Tensor& t, const char* name, int64_t length) {
  check_memory(t, name);
  check(t.dim() == 1 && t.size(0) == length, name, " must be 1-D with ", length, " elements, got ",
        t.dim(), "-D with ", t.numel());
}

void check_dtype(const Tensor& t, const char* name, Dtype dtype, const char* dtype_name) {
  check(t.scalar_type() == dtype, name, " must be ", dtype_name);
}

void check_same_device(const Tensor& t, const char* name, const Tensor& reference) {
  check(t.is_cuda() == reference.is_cuda() && t.get_device_index() == reference.get_device_index(),
        name, " is on another device than the first argument");
}

Seed checked_seed(const std::optional<Tensor>& seed_tensor, int64_t seed, const Tensor& like) {
  if (!seed_tensor.has_value()) return {static_cast<uint64_t>(seed), nullptr};
  check_same_device(*seed_tensor, "seed", like);
  check_dtype(*seed_tensor, "seed", Dtype::Long, "int64");
  check(seed_tensor->numel() == 1, "seed must have one element");
  check_memory(*seed_tensor, "seed");
  return {0, static_cast<const int64_t*>(seed_tensor->const_data_ptr())};
}

Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

namespace {

int32_t aoti_dtype(Dtype dtype) {
  switch (dtype) {
    case Dtype::Float:
      return aoti_torch_dtype_float32();
    case Dtype::Half:
      return aoti_torch_dtype_float16();
    case Dtype::BFloat16:
      return aoti_torch_dtype_bfloat16();
    case Dtype::Double:
      return aoti_torch_dtype_float64();
    case Dtype::Long:
      return aoti_torch_dtype_int64();
    case Dtype::Int:
      return aoti_torch_dtype_int32();
    case Dtype::Byte:
      return aoti_torch_dtype_uint8();
    case Dtype::Bool:
      return aoti_torch_dtype_bool();
    default:
      fail<std::logic_error>("no results have this dtype");
  }
}

}  // namespace

// torch::stable::new_empty looks its operator up by name on every call; this looks nothing up.
Tensor allocate(const Tensor& like, std::initializer_list<int64_t> sizes, Dtype dtype) {
  int64_t strides[4], stride = 1;
  check(sizes.size() <= std::size(strides), "too many dimensions");
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= sizes.begin()[i] > 0 ? sizes.begin()[i] : 1;
  }
  const bool cuda = on_cuda(like);
  AtenTensorHandle handle;
  const AOTITorchError error = aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.begin(), strides, aoti_dtype(dtype),
      cuda ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu(),
      cuda ? like.get_device_index() : 0, &handle);
  if (error == TORCH_SUCCESS) return Tensor(handle);
  // Most likely out of memory: new_empty raises an error that says so.
  return torch::stable::new_empty(like, {sizes.begin(), sizes.size()}, dtype);
}

Tensor allocate_bytes(const Tensor& like, size_t bytes) {
  return allocate(like, {static_cast<int64_t>(bytes)}, Dtype::Byte);
}

cpu::Parallel torch_threads() {
  const auto run = [](int num_tasks, void (*task)(void*, int), void* context) {
    torch::stable::parallel_for(0, num_tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) task(context, static_cast<int>(i));
    });
  };
  return {static_cast<int>(torch::stable::get_num_threads()), run};
}

void raise_if_bad(const DataStatus& status, int64_t limit) {
  if (status.ok) return;
  switch (status.error) {
    case DataError::kTarget:
      fail<std::out_of_range>("target[", status.position, "] = ", status.value,
                              " is not a class: expected 0 <= target < ", limit,
                              " or ignore_index");
    case DataError::kSampleId:
      fail<std::out_of_range>("sample_ids[", status.position, "] = ", status.value,
                              " is out of range: expected 0 <= id < ", limit);
    case DataError::kWeight:
      fail("weights[", status.position, "] is negative or NaN: weights must be >= 0");
    case DataError::kProbability:
      fail("target[", status.position, "] has ", bit_cast<double>(status.value),
           ": expected 0 <= target <= 1");
  }
}

bool on_cuda(const Tensor& t) {
  if (!t.is_cuda()) return false;
#if defined(DYNPRUNE_WITH_CUDA)
  return true;
#else
  fail("dynprune_cuda was built for the CPU only and got a CUDA tensor");
#endif
}

#if defined(DYNPRUNE_WITH_CUDA)
namespace {

// For its lifetime, this thread may make calls that are forbidden while a stream is captured. The
// one-time set-up below is not part of a graph.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

constexpr int kMaxDevices = 128;
constexpr size_t kErrorBytes = kNumDataErrors * sizeof(ErrorRecord);

// The device's error records. They live as long as the process, because kernels of any stream or
// replayed graph may write to them. The first call per device waits once.
ErrorRecord* error_records(int device) {
  static std::mutex mutex;
  static ErrorRecord* records[kMaxDevices] = {};
  check(device >= 0 && device < kMaxDevices, "unsupported CUDA device index ", device);
  const std::lock_guard<std::mutex> lock(mutex);
  if (records[device] == nullptr) {
    const RelaxedCapture relaxed;
    void* memory = nullptr;
    cudaStream_t stream = nullptr;
    cuda_check(cudaMalloc(&memory, kErrorBytes), "allocating the error records");
    cuda_check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
    cuda_check(cudaMemsetAsync(memory, 0, kErrorBytes, stream), "clearing the error records");
    cuda_check(cudaStreamSynchronize(stream), "clearing the error records");
    cuda_check(cudaStreamDestroy(stream), "destroying a stream");
    records[device] = static_cast<ErrorRecord*>(memory);
  }
  return records[device];
}

}  // namespace

void cuda_check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // otherwise the next launch would report it again
  fail("CUDA error while ", what, ": ", cudaGetErrorString(error));
}

CudaScope::CudaScope(const Tensor& t) : device_(t.get_device_index()), guard_(device_) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
  stream_ = static_cast<cudaStream_t>(stream);
}

ErrorRecord* CudaScope::errors() const { return error_records(device_); }
#endif

}  // namespace bindings
}  // namespace dynprune
