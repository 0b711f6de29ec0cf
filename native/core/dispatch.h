#pragma once

#include <string>

#include "core/dtype.h"
#include "core/status.h"

// Turns runtime values into compile-time ones, once, at the top of an op. Validate() has already
// refused what is not listed, so a miss here is a bug and says so.
#if defined(__CUDACC__)
#pragma nv_diag_suppress 2810  // [[nodiscard]] Status inside the fold
#endif

namespace varlen {

// Calls run.template operator()<T>() for the T whose dtype is `dtype`.
template <class... Supported, class Run>
Status DispatchDType(DType dtype, const char* argument, Run&& run) {
  Status status{Code::kUnsupported, argument, std::string("no kernel for ") + NameOf(dtype), {}};
  (void)((dtype == DTypeOf<Supported>::value &&
          (status = run.template operator()<Supported>(), true)) ||
         ...);
  return status;
}

// Calls run.template operator()<value>() for the value that equals `value`.
template <int... kSupported, class Run>
Status DispatchInt(int64_t value, const char* argument, Run&& run) {
  Status status{Code::kUnsupported, argument, "no kernel for " + std::to_string(value), {}};
  (void)((value == kSupported && (status = run.template operator()<kSupported>(), true)) || ...);
  return status;
}

}  // namespace varlen
