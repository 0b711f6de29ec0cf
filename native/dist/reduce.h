#pragma once

#include <cstddef>
#include <cstdint>

// Elementwise reductions, as src/dist/reduce.ts defines them for the engines in memory.
namespace varlen::dist {

// In the order of the element types in src/dist/collective-arguments.ts.
enum class Element : uint8_t { kU8, kI32, kF32, kF64, kI64 };
// In the order of `reduceOps` in src/dist/reduce.ts.
enum class Reduction : uint8_t { kSum, kAvg, kMin, kMax };

size_t SizeOf(Element element);

// out[i] = a[i] op b[i]; out may be a. What Gloo calls on every segment.
using ReduceFn = void (*)(void* out, const void* a, const void* b, size_t count);

// An average of integers is summed in a type that holds every sum, and rounded towards zero.
struct Plan {
  ReduceFn reduce;
  size_t bytes;  // of one element while it travels
  // Both null when elements travel as they are.
  void (*widen)(const void* from, void* to, size_t count);
  // Back into the caller's elements; divides by `size` for an average.
  void (*finish)(const void* from, void* to, size_t count, int size);
};

Plan PlanOf(Element element, Reduction reduction);

}  // namespace varlen::dist
