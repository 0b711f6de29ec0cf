#pragma once

#include "core/copy.h"
#include "core/status.h"
#include "core/storage.h"
#include "core/tensor.h"

// The copies of core/copy.h where one side, or both, is a GPU's. Called by a task of a GPU's
// stream.
namespace varlen::cuda {

// Copies the elements into pinned memory, row-major, by the time the task is done.
Status BeginRead(const Tensor& src, StorageRef* staged);
// The same into pinned memory of the caller's, which the task keeps.
Status BeginRead(const Tensor& src, std::byte* pinned);

// src on the GPU or the host, dst likewise; at least one on the GPU.
Status Run(const Copy& params);
Status Run(const Accumulate& params);

}  // namespace varlen::cuda
