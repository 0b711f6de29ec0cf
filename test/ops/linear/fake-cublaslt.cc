// A library with cuBLASLt's names, for host memory: products in float64, in the order of the
// stream. It refuses what the real one would refuse.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

constexpr int kSuccess = 0, kInvalidValue = 7, kExecutionFailed = 13, kNotSupported = 15;
constexpr int kFloat = 0, kHalf = 2, kBfloat = 14;
constexpr uint64_t kAlgorithm = 0x616c676f;  // what GetHeuristic hands out
constexpr size_t kWorkspace = 1024;

void (*enqueue)(void* stream, void (*work)(void*), void* argument) = nullptr;

struct Handle {};
struct Layout {
  int type;
  uint64_t rows, columns;
  int64_t stride;
};
struct Desc {
  int transpose_a = 0, transpose_b = 0, epilogue = 1, bias_type = -1;
  const void* bias = nullptr;
};
struct Preference {
  uint64_t workspace = 0;
  uint32_t reductions = 7;
  uint32_t alignment[4] = {256, 256, 256, 256};
};
struct Heuristic {
  uint64_t algorithm[8];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

int Asked(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoi(value);
}

float FromHalf(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                        : std::ldexp(1024.0F + fraction, exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

double Read(const void* data, int type, size_t i) {
  if (type == kFloat) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  if (type == kHalf) return FromHalf(bits);
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

// To nearest, ties to even; finite values inside the range alone.
void Write(void* data, int type, size_t i, double value) {
  if (type == kFloat) {
    static_cast<float*>(data)[i] = static_cast<float>(value);
    return;
  }
  uint16_t bits;
  if (type == kBfloat) {
    const auto narrow = static_cast<float>(value);
    uint32_t wide;
    std::memcpy(&wide, &narrow, sizeof(wide));
    bits = static_cast<uint16_t>((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
  } else {
    int exponent = 0;
    const double magnitude = std::abs(value);
    std::frexp(magnitude, &exponent);
    const int spacing = exponent - 11 < -24 ? -24 : exponent - 11;
    const double units = std::nearbyint(std::ldexp(magnitude, -spacing));
    bits = static_cast<uint16_t>(units < 1024 ? units : ((spacing + 24) << 10) + units);
    if (value < 0) bits |= 0x8000;
  }
  static_cast<uint16_t*>(data)[i] = bits;
}

struct Work {
  Desc desc;
  Layout a_layout, b_layout, d_layout;
  const void *a, *b;
  void* d;
};

void Multiply(void* argument) {
  const Work* w = static_cast<Work*>(argument);
  const uint64_t depth = w->desc.transpose_a ? w->a_layout.rows : w->a_layout.columns;
  for (uint64_t m = 0; m < w->d_layout.rows; ++m) {
    for (uint64_t n = 0; n < w->d_layout.columns; ++n) {
      double sum = 0;
      for (uint64_t k = 0; k < depth; ++k) {
        const uint64_t a =
            w->desc.transpose_a ? k + m * w->a_layout.stride : m + k * w->a_layout.stride;
        const uint64_t b =
            w->desc.transpose_b ? n + k * w->b_layout.stride : k + n * w->b_layout.stride;
        sum += Read(w->a, w->a_layout.type, a) * Read(w->b, w->b_layout.type, b);
      }
      if (w->desc.epilogue == 4) sum += Read(w->desc.bias, w->desc.bias_type, m);
      Write(w->d, w->d_layout.type, m + n * w->d_layout.stride, sum);
    }
  }
  delete w;
}

bool Fits(const Desc& desc, const Layout& a, const Layout& b, const Layout& d) {
  const uint64_t m = desc.transpose_a ? a.columns : a.rows;
  const uint64_t k = desc.transpose_a ? a.rows : a.columns;
  const uint64_t n = desc.transpose_b ? b.rows : b.columns;
  const uint64_t k2 = desc.transpose_b ? b.columns : b.rows;
  const auto tight = [](const Layout& l) { return l.stride >= static_cast<int64_t>(l.rows); };
  return m == d.rows && n == d.columns && k == k2 && m > 0 && n > 0 && k > 0 && tight(a) &&
         tight(b) && tight(d) && a.type == b.type && (d.type == a.type || d.type == kFloat);
}

template <class T>
int Make(void** made, T value) {
  *made = new T(value);
  return kSuccess;
}
template <class T>
int Drop(void* made) {
  delete static_cast<T*>(made);
  return kSuccess;
}

bool Aligned(const void* data, uint32_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % bytes == 0;
}

}  // namespace

extern "C" {

void fakeEnqueueBy(void (*by)(void*, void (*)(void*), void*)) { enqueue = by; }

size_t cublasLtGetVersion() {
#ifdef OLD
  return 110902;
#else
  return 130000;
#endif
}
const char* cublasLtGetStatusName(int status) {
  return status == kExecutionFailed ? "CUBLAS_STATUS_EXECUTION_FAILED"
                                    : "CUBLAS_STATUS_INVALID_VALUE";
}
int cublasLtCreate(void** handle) {
#ifdef REFUSES
  (void)handle;
  return kNotSupported;
#else
  return Make(handle, Handle{});
#endif
}
int cublasLtDestroy(void* handle) { return Drop<Handle>(handle); }

int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns,
                               int64_t stride) {
  return Make(layout, Layout{type, rows, columns, stride});
}
int cublasLtMatrixLayoutDestroy(void* layout) { return Drop<Layout>(layout); }

int cublasLtMatmulDescCreate(void** desc, int compute, int scale) {
  return compute == 68 && scale == kFloat ? Make(desc, Desc{}) : kInvalidValue;
}
int cublasLtMatmulDescDestroy(void* desc) { return Drop<Desc>(desc); }
int cublasLtMatmulDescSetAttribute(void* desc, int attribute, const void* value, size_t bytes) {
  Desc& d = *static_cast<Desc*>(desc);
  if (bytes != (attribute == 8 ? sizeof(void*) : sizeof(int32_t))) return kInvalidValue;
  if (attribute == 3) return std::memcpy(&d.transpose_a, value, bytes), kSuccess;
  if (attribute == 4) return std::memcpy(&d.transpose_b, value, bytes), kSuccess;
  if (attribute == 7) return std::memcpy(&d.epilogue, value, bytes), kSuccess;
  if (attribute == 8) return std::memcpy(&d.bias, value, bytes), kSuccess;
  if (attribute == 26) return std::memcpy(&d.bias_type, value, bytes), kSuccess;
  return kInvalidValue;
}

int cublasLtMatmulPreferenceCreate(void** preference) { return Make(preference, Preference{}); }
int cublasLtMatmulPreferenceDestroy(void* preference) { return Drop<Preference>(preference); }
int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value,
                                         size_t bytes) {
  Preference& p = *static_cast<Preference*>(preference);
  if (bytes != (attribute == 1 ? sizeof(uint64_t) : sizeof(uint32_t))) return kInvalidValue;
  if (attribute == 1) return std::memcpy(&p.workspace, value, bytes), kSuccess;
  if (attribute == 3) return std::memcpy(&p.reductions, value, bytes), kSuccess;
  if (attribute < 5 || attribute > 8) return kInvalidValue;
  return std::memcpy(&p.alignment[attribute - 5], value, bytes), kSuccess;
}

int cublasLtMatmulAlgoGetHeuristic(void* handle, void* desc, void* a, void* b, void* c, void* d,
                                   void* preference, int wanted, Heuristic* results, int* found) {
  const Preference& p = *static_cast<Preference*>(preference);
  *found = 0;
  if (handle == nullptr || c != d || wanted != 1 || p.reductions != 2 || p.workspace < kWorkspace ||
      !Fits(*static_cast<Desc*>(desc), *static_cast<Layout*>(a), *static_cast<Layout*>(b),
            *static_cast<Layout*>(d))) {
    return kInvalidValue;
  }
  // As the real one of products that it has no kernel for.
  if (static_cast<int64_t>(static_cast<Layout*>(d)->rows) ==
      Asked("FAKE_CUBLASLT_NO_KERNEL_FOR", -1)) {
    return kNotSupported;
  }
  *results = {};
  results->algorithm[0] = kAlgorithm;
  // What it was promised of the addresses.
  std::memcpy(&results->algorithm[1], p.alignment, sizeof(p.alignment));
  results->workspace = kWorkspace;
  *found = 1;
  return kSuccess;
}

int cublasLtMatmul(void* handle, void* desc, const float* alpha, const void* a, void* a_layout,
                   const void* b, void* b_layout, const float* beta, const void* c, void* c_layout,
                   void* d, void* d_layout, const uint64_t* algorithm, void* workspace,
                   size_t workspace_bytes, void* stream) {
  const Work work{*static_cast<Desc*>(desc),
                  *static_cast<Layout*>(a_layout),
                  *static_cast<Layout*>(b_layout),
                  *static_cast<Layout*>(d_layout),
                  a,
                  b,
                  d};
  uint32_t promised[4];
  std::memcpy(promised, algorithm + 1, sizeof(promised));
  if (handle == nullptr || *alpha != 1 || *beta != 0 || c != d || c_layout != d_layout ||
      algorithm[0] != kAlgorithm || workspace == nullptr || workspace_bytes != kWorkspace ||
      !Fits(work.desc, work.a_layout, work.b_layout, work.d_layout) ||
      (work.desc.epilogue == 4) != (work.desc.bias != nullptr) || !Aligned(a, promised[0]) ||
      !Aligned(b, promised[1]) || !Aligned(d, promised[3]) ||
      !Aligned(work.desc.bias, promised[3])) {
    return kInvalidValue;
  }
  if (const int status = Asked("FAKE_CUBLASLT_STATUS", kSuccess); status != kSuccess) return status;
  enqueue(stream, Multiply, new Work(work));
  return kSuccess;
}
}
