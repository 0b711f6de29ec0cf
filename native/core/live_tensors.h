#pragma once

#include <array>
#include <cstdint>

#include "core/status.h"
#include "core/tensor.h"

namespace varlen {

// A tensor that somebody can still name, in any environment: what an error about memory blames. The
// entries are linked, not copied, so that adding one cannot fail.
class LiveTensor {
 public:
  LiveTensor() = default;
  ~LiveTensor() { Unlink(); }
  LiveTensor(const LiveTensor&) = delete;
  LiveTensor& operator=(const LiveTensor&) = delete;

  void Link(const Tensor& tensor);
  void Unlink();

 private:
  friend void NameLargestTensors(Device device, Status& status);

  // The entry of another name of the same memory counts once.
  struct Facts {
    const Storage* storage = nullptr;
    int64_t bytes = 0;  // that disposing it would free
    int64_t size = 0;   // elements
    DType dtype = DType::kF32;
    Device device;
    int rank = 0;
    std::array<int64_t, kMaxRank> shape{};
  };

  LiveTensor* before_ = nullptr;
  LiveTensor* after_ = nullptr;
  Facts facts_;
};

// Adds to the message, and as details.largestTensors, the tensors that hold most of a device's
// memory: "float32 [1024, 256] (1048576 bytes), ...". Nothing where there are none.
void NameLargestTensors(Device device, Status& status);

}  // namespace varlen
