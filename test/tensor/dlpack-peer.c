// Another library with DLPack, written from its specification and without a look at ours: makes
// structs, reads them, and counts what it was asked to delete.
#include <node_api.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  int32_t device_type, device_id;
} DLDevice;

typedef struct {
  uint8_t code, bits;
  uint16_t lanes;
} DLDataType;

typedef struct {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
} DLTensor;

typedef struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(struct DLManagedTensor* self);
} DLManagedTensor;

typedef struct {
  uint32_t major, minor;
} DLPackVersion;

typedef struct DLManagedTensorVersioned {
  DLPackVersion version;
  void* manager_ctx;
  void (*deleter)(struct DLManagedTensorVersioned* self);
  uint64_t flags;
  DLTensor dl_tensor;
} DLManagedTensorVersioned;

enum { kMaxRank = 8 };

typedef struct {
  DLManagedTensorVersioned versioned;
  DLManagedTensor unversioned;
  int64_t shape[kMaxRank], strides[kMaxRank];
  uint8_t own[256];
} Made;

static int deleted = 0;

static void delete_versioned(DLManagedTensorVersioned* self) {
  __atomic_add_fetch(&deleted, 1, __ATOMIC_SEQ_CST);
  free(self->manager_ctx);
}

static void delete_unversioned(DLManagedTensor* self) {
  __atomic_add_fetch(&deleted, 1, __ATOMIC_SEQ_CST);
  free(self->manager_ctx);
}

static int64_t integer(napi_env env, napi_value value) {
  int64_t result = 0;
  bool lossless;
  napi_get_value_bigint_int64(env, value, &result, &lossless);
  return result;
}

static napi_value bigint(napi_env env, uint64_t number) {
  napi_value value;
  napi_create_bigint_uint64(env, number, &value);
  return value;
}

static void arguments(napi_env env, napi_callback_info info, size_t count, napi_value* values) {
  napi_get_cb_info(env, info, &count, values, NULL, NULL);
}

static void* elements(napi_env env, napi_value array) {
  void* data = NULL;
  napi_get_typedarray_info(env, array, NULL, NULL, &data, NULL, NULL);
  return data;
}

// make(fields, shape, strides, bytes): fields = BigInt64Array of [versioned, major, flags, device
// type, device id, code, bits, lanes, byte offset, rank, data or 0 for `bytes`]; shape and strides
// = BigInt64Arrays of 8; bytes = Uint8Array of 256.
static napi_value make(napi_env env, napi_callback_info info) {
  napi_value values[4];
  arguments(env, info, 4, values);
  const int64_t* f = elements(env, values[0]);
  Made* made = calloc(1, sizeof *made);
  memcpy(made->shape, elements(env, values[1]), sizeof made->shape);
  memcpy(made->strides, elements(env, values[2]), sizeof made->strides);
  memcpy(made->own, elements(env, values[3]), sizeof made->own);
  DLTensor tensor = {f[10] == 0 ? (void*)made->own : (void*)f[10],
                     {(int32_t)f[3], (int32_t)f[4]},
                     (int32_t)f[9],
                     {(uint8_t)f[5], (uint8_t)f[6], (uint16_t)f[7]},
                     made->shape,
                     made->strides,
                     (uint64_t)f[8]};
  made->versioned = (DLManagedTensorVersioned){
      {(uint32_t)f[1], 0}, made, delete_versioned, (uint64_t)f[2], tensor};
  made->unversioned = (DLManagedTensor){tensor, made, delete_unversioned};
  return bigint(env, f[0] ? (uint64_t)&made->versioned : (uint64_t)&made->unversioned);
}

// read(pointer, versioned) -> [major, flags, device type, device id, code, bits, lanes, byte
// offset, data, rank, shape..., strides...]
static napi_value read(napi_env env, napi_callback_info info) {
  napi_value values[2], result;
  arguments(env, info, 2, values);
  void* at = (void*)integer(env, values[0]);
  const bool versioned = integer(env, values[1]) != 0;
  const DLManagedTensorVersioned* v = at;
  const DLTensor* t = versioned ? &v->dl_tensor : &((DLManagedTensor*)at)->dl_tensor;
  const uint64_t facts[] = {versioned ? v->version.major : 0,
                            versioned ? v->flags : 0,
                            (uint64_t)t->device.device_type,
                            (uint64_t)t->device.device_id,
                            t->dtype.code,
                            t->dtype.bits,
                            t->dtype.lanes,
                            t->byte_offset,
                            (uint64_t)t->data,
                            (uint64_t)t->ndim};
  napi_create_array(env, &result);
  uint32_t n = 0;
  for (; n < sizeof facts / sizeof *facts; n++)
    napi_set_element(env, result, n, bigint(env, facts[n]));
  for (int i = 0; i < t->ndim; i++) napi_set_element(env, result, n++, bigint(env, t->shape[i]));
  for (int i = 0; i < t->ndim; i++) napi_set_element(env, result, n++, bigint(env, t->strides[i]));
  return result;
}

// peek(address, target): copies memory into a Uint8Array.
static napi_value peek(napi_env env, napi_callback_info info) {
  napi_value values[2];
  size_t length = 0;
  void* target = NULL;
  arguments(env, info, 2, values);
  napi_get_typedarray_info(env, values[1], NULL, &length, &target, NULL, NULL);
  memcpy(target, (void*)integer(env, values[0]), length);
  return NULL;
}

// release(pointer, versioned): calls the deleter, as a consumer does when it is done.
static napi_value release(napi_env env, napi_callback_info info) {
  napi_value values[2];
  arguments(env, info, 2, values);
  void* at = (void*)integer(env, values[0]);
  if (integer(env, values[1]) != 0) {
    ((DLManagedTensorVersioned*)at)->deleter(at);
  } else {
    ((DLManagedTensor*)at)->deleter(at);
  }
  return NULL;
}

static napi_value count(napi_env env, napi_callback_info info) {
  (void)info;
  napi_value value;
  napi_create_int32(env, __atomic_load_n(&deleted, __ATOMIC_SEQ_CST), &value);
  return value;
}

NAPI_MODULE_INIT() {
  const struct {
    const char* name;
    napi_callback call;
  } functions[] = {
      {"make", make}, {"read", read}, {"peek", peek}, {"release", release}, {"deleted", count}};
  for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
    napi_value function;
    napi_create_function(env, functions[i].name, NAPI_AUTO_LENGTH, functions[i].call, NULL,
                         &function);
    napi_set_named_property(env, exports, functions[i].name, function);
  }
  return exports;
}
