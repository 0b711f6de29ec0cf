#pragma once

namespace varlen::simt {

// A borrowed callable. Unlike std::function it owns nothing, so that the stack of a thread that is
// abandoned after a fault leaks nothing.
template <class R>
class FunctionRef {
 public:
  template <class F>
  FunctionRef(const F& function)  // NOLINT: implicit, as a parameter wants it
      : object_(&function),
        call_([](const void* f) -> R { return (*static_cast<const F*>(f))(); }) {}
  R operator()() const { return call_(object_); }

 private:
  const void* object_;
  R (*call_)(const void*);
};

}  // namespace varlen::simt
