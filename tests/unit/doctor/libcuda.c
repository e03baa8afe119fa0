// A stand-in for libcuda with one GB10, whose name and code are what FAKE_CUDA says: "hang", an error's number, or nothing.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char const* said(void) {
  char const* text = getenv("FAKE_CUDA");
  return text ? text : "";
}

int cuInit(unsigned flags) {
  (void)flags;
  if (strcmp(said(), "hang") == 0) sleep(600);
  if (strcmp(said(), "crash") == 0) abort();
  return atoi(said());
}
int cuDriverGetVersion(int* version) {
  *version = strcmp(said(), "old") == 0 ? 12080 : 13000;
  return 0;
}
int cuGetErrorName(int code, char const** text) {
  *text = code == 999 ? "CUDA_ERROR_UNKNOWN" : "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH";
  return 0;
}
int cuGetErrorString(int code, char const** text) {
  *text = code == 999 ? "unknown error" : "unsupported combination";
  return 0;
}
int cuDeviceGetCount(int* count) {
  *count = strcmp(said(), "none") != 0;
  return 0;
}
int cuDeviceGetName(char* name, int size, int device) {
  (void)device;
  snprintf(name, size, "NVIDIA GB10");
  return 0;
}
int cuDeviceTotalMem_v2(size_t* size, int device) {
  (void)device;
  *size = 128526123008u;
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  (void)device;
  *value = attribute == 75 ? 12 : 1;
  return 0;
}
int cuDeviceGetPCIBusId(char* text, int size, int device) {
  (void)device;
  snprintf(text, size, "000f:01:00.0");
  return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
  (void)device;
  *context = (void*)1;
  return 0;
}
int cuCtxSetCurrent(void* context) { return context == NULL; }
int cuMemGetInfo_v2(size_t* free, size_t* total) {
  *free = 100000000000u;
  *total = 128526123008u;
  return 0;
}
int cuDevicePrimaryCtxRelease_v2(int device) { return device; }
