/* A module as FlashInfer compiles them, small enough to follow: answer(x) = x * (number of arguments) * 21. */
#include <tvm/ffi/c_api.h>

int __tvm_ffi_answer(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self;
  result->type_index = kTVMFFIInt;
  result->zero_padding = 0;
  result->v_int64 = args[0].v_int64 * count * 21;
  return 0;
}
