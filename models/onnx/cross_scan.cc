// The cross-scan as an operator of ONNX Runtime: vmunet::CrossScan, which the runtime takes in place of the function of
// that name in exported files. It runs in the session's own threads. `export.py --custom-op` compiles it.

#include "cross_scan.h"

#include <onnxruntime_c_api.h>

#include <string>

namespace {

constexpr int VERSION = 1;  // of the operator, as in models/cross_scan/export
constexpr int API = 18;     // of ONNX Runtime 1.18, the first with all that is used here

const OrtApi* api = nullptr;

#define RETURN_IF_ERROR(call) \
  if (OrtStatus* status = (call)) return status

OrtStatus* get_input(OrtKernelContext* context, size_t index, const float** data, std::vector<int64_t>* shape) {
  const OrtValue* value = nullptr;
  RETURN_IF_ERROR(api->KernelContext_GetInput(context, index, &value));
  OrtTensorTypeAndShapeInfo* info = nullptr;
  RETURN_IF_ERROR(api->GetTensorTypeAndShape(value, &info));
  size_t rank = 0;
  OrtStatus* status = api->GetDimensionsCount(info, &rank);
  shape->resize(rank);
  if (!status) status = api->GetDimensions(info, shape->data(), rank);
  api->ReleaseTensorTypeAndShapeInfo(info);
  if (status) return status;
  return api->GetTensorData(value, reinterpret_cast<const void**>(data));
}

std::string in_words(const std::vector<int64_t>& shape) {
  std::string text;
  for (int64_t size : shape) text += (text.empty() ? "" : " x ") + std::to_string(size);
  return text;
}

OrtStatus* invalid(const std::string& what) {
  return api->CreateStatus(ORT_INVALID_ARGUMENT, ("vmunet::CrossScan, input " + what).c_str());
}

OrtStatus* compute(void*, OrtKernelContext* context) {
  static const char* const names[] = {"x", "dt", "B", "C", "A", "D", "dt_bias", "dt_weight"};
  const float* data[8];
  std::vector<int64_t> shapes[8];
  for (size_t i = 0; i < 8; ++i) RETURN_IF_ERROR(get_input(context, i, &data[i], &shapes[i]));
  const std::vector<int64_t>&x = shapes[0], &A = shapes[4], &weight = shapes[7];
  if (x.size() != 4 || A.size() != 3 || weight.size() != 3)
    return invalid("x, A, dt_weight: found other numbers of axes, expected 4, 3, 3");
  const int64_t b = x[0], H = x[1], W = x[2], I = x[3], N = A[2], R = weight[2];
  const std::vector<int64_t> expected[] = {x,         {b, H, W, 4, R}, {b, H, W, 4, N}, {b, H, W, 4, N},
                                           {4, I, N}, {4, I},          {4, I},          {4, I, R}};
  for (size_t i = 0; i < 8; ++i)
    if (shapes[i] != expected[i])
      return invalid(names[i] + (": found " + in_words(shapes[i])) + ", expected " + in_words(expected[i]));
  OrtValue* y = nullptr;
  RETURN_IF_ERROR(api->KernelContext_GetOutput(context, 0, x.data(), x.size(), &y));
  Call call = {data[0], data[1], data[2], data[3], data[4], data[5], data[6], data[7], nullptr, b, H, W, I, N, R};
  RETURN_IF_ERROR(api->GetTensorMutableData(y, reinterpret_cast<void**>(&call.y)));
  return api->KernelContext_ParallelFor(context, run_task, static_cast<size_t>(call.tasks()), 0, &call);
}

OrtCustomOp cross_scan() {
  OrtCustomOp op = {};
  op.version = API;
  op.GetName = [](const OrtCustomOp*) { return "CrossScan"; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // the CPU
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 8; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetInputType = op.GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetOutputCharacteristic = op.GetInputCharacteristic;
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel) -> OrtStatus* {
    *kernel = nullptr;
    return nullptr;
  };
  op.KernelComputeV2 = compute;
  op.KernelDestroy = [](void*) {};
  op.GetStartVersion = op.GetEndVersion = [](const OrtCustomOp*) { return VERSION; };
  return op;
}

}  // namespace

extern "C" ORT_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  static const OrtCustomOp op = cross_scan();
  api = base->GetApi(API);
  if (!api) return base->GetApi(1)->CreateStatus(ORT_FAIL, "vmunet::CrossScan needs ONNX Runtime 1.18 or later");
  OrtCustomOpDomain* domain = nullptr;  // lives as long as the process, as any session may use it
  RETURN_IF_ERROR(api->CreateCustomOpDomain("vmunet", &domain));
  RETURN_IF_ERROR(api->CustomOpDomain_Add(domain, &op));
  return api->AddCustomOpDomain(options, domain);
}
