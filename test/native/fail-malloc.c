// Preloaded before Node, and required as an addon by the program under test: makes the n-th
// allocation (or thread start) that varlen.node asks for fail. Allocations of Node and V8 count only
// when varlen.node makes them itself, so that what fails is ours to handle.
#define _GNU_SOURCE
#include <errno.h>
#include <link.h>
#include <node_api.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

extern void* __libc_malloc(size_t bytes);
extern void* __libc_calloc(size_t count, size_t bytes);
extern void* __libc_realloc(void* old, size_t bytes);
extern void* __libc_memalign(size_t alignment, size_t bytes);

static uintptr_t module_begin, module_end;
static atomic_int armed;    // counting
static atomic_long first;   // the first that fails; negative: none
static atomic_int lasting;  // all after it fail too
static atomic_long count;   // asked for since arm()
static atomic_long failed;

static int Fails(const void* caller) {
  const uintptr_t address = (uintptr_t)caller;
  if (!atomic_load(&armed) || address < module_begin || address >= module_end) return 0;
  const long index = atomic_fetch_add(&count, 1), from = atomic_load(&first);
  if (from < 0 || index < from || (index > from && !atomic_load(&lasting))) return 0;
  atomic_fetch_add(&failed, 1);
  return 1;
}

#define CALLER __builtin_return_address(0)
#define NO_MEMORY ((void*)(uintptr_t)(errno = ENOMEM, 0))

void* malloc(size_t bytes) { return Fails(CALLER) ? NO_MEMORY : __libc_malloc(bytes); }
void* calloc(size_t n, size_t bytes) { return Fails(CALLER) ? NO_MEMORY : __libc_calloc(n, bytes); }
void* realloc(void* old, size_t bytes) {
  return Fails(CALLER) ? NO_MEMORY : __libc_realloc(old, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) {
  return Fails(CALLER) ? NO_MEMORY : __libc_memalign(alignment, bytes);
}
int posix_memalign(void** out, size_t alignment, size_t bytes) {
  if (Fails(CALLER)) return ENOMEM;
  *out = __libc_memalign(alignment, bytes);
  return *out == NULL ? ENOMEM : 0;
}

extern void* dlsym(void* handle, const char* name);
int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*), void* arg) {
  static int (*real)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  if (Fails(CALLER)) return EAGAIN;
  if (real == NULL) *(void**)&real = dlsym((void*)-1L /* RTLD_NEXT */, "pthread_create");
  return real(thread, attributes, run, arg);
}

static int FindModule(struct dl_phdr_info* info, size_t size, void* data) {
  (void)size, (void)data;
  if (strstr(info->dlpi_name, "varlen.") == NULL) return 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    if (info->dlpi_phdr[i].p_type != PT_LOAD || (info->dlpi_phdr[i].p_flags & PF_X) == 0) continue;
    module_begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
    module_end = module_begin + info->dlpi_phdr[i].p_memsz;
  }
  return 1;
}

// arm(first, lasting)
static napi_value Arm(napi_env env, napi_callback_info info) {
  napi_value args[2];
  size_t n = 2;
  int64_t from = -1;
  bool all = false;
  napi_get_cb_info(env, info, &n, args, NULL, NULL);
  napi_get_value_int64(env, args[0], &from);
  napi_get_value_bool(env, args[1], &all);
  dl_iterate_phdr(FindModule, NULL);
  atomic_store(&first, from);
  atomic_store(&lasting, all);
  atomic_store(&count, 0);
  atomic_store(&failed, 0);
  atomic_store(&armed, 1);
  return NULL;
}

// disarm(): how many have failed; -1 when varlen.node was not found
static napi_value Disarm(napi_env env, napi_callback_info info) {
  (void)info;
  atomic_store(&armed, 0);
  napi_value result;
  napi_create_int64(env, module_begin == 0 ? -1 : atomic_load(&failed), &result);
  return result;
}

// count(): asked for since arm()
static napi_value Count(napi_env env, napi_callback_info info) {
  (void)info;
  napi_value result;
  napi_create_int64(env, atomic_load(&count), &result);
  return result;
}

NAPI_MODULE_INIT() {
  const struct {
    const char* name;
    napi_callback call;
  } functions[] = {{"arm", Arm}, {"disarm", Disarm}, {"count", Count}};
  for (size_t i = 0; i < sizeof(functions) / sizeof(*functions); ++i) {
    napi_value function;
    napi_create_function(env, functions[i].name, NAPI_AUTO_LENGTH, functions[i].call, NULL, &function);
    napi_set_named_property(env, exports, functions[i].name, function);
  }
  return exports;
}
