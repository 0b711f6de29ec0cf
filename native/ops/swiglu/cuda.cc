#include "core/cuda/elements.h"
#include "ops/swiglu/device.h"
#include "ops/swiglu/swiglu.h"

namespace varlen::swiglu {

Status RunCuda(const Forward& p) {
  return cuda::LaunchFor(p.gate, [&]<class T>(cuda::Launch& launch) {
    launch.Run<DeviceGate<T>>(DeviceGate<T>::BlocksFor(p.out.size()),
                              {p.gate.data<T>(), p.up.data<T>(), p.out.data<T>(), p.out.size(),
                               cuda::Aligned(p.gate, p.up, p.out)});
  });
}

Status RunCuda(const Backward& p) {
  return cuda::LaunchFor(p.gate, [&]<class T>(cuda::Launch& launch) {
    launch.Run<DeviceGateGradients<T>>(
        DeviceGateGradients<T>::BlocksFor(p.gate.size()),
        {p.d_out.data<T>(), p.gate.data<T>(), p.up.data<T>(), p.d_gate.data<T>(), p.d_up.data<T>(),
         p.gate.size(), cuda::Aligned(p.d_out, p.gate, p.up, p.d_gate, p.d_up)});
  });
}

}  // namespace varlen::swiglu
