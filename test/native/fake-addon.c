// A tiny Node-API module for load.test.ts. VERSION: what it claims to be. REFUSE: throws at load.
#include <node_api.h>

NAPI_MODULE_INIT() {
#ifdef REFUSE
  napi_throw_error(env, "ERR_VARLEN_UNSUPPORTED_CPU", "load: the CPU lacks SSE4.2");
#else
  napi_value version;
  napi_create_string_utf8(env, VERSION, NAPI_AUTO_LENGTH, &version);
  napi_set_named_property(env, exports, "version", version);
#endif
  return exports;
}
