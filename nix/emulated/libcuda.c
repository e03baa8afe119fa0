// Stands for the NVIDIA driver's libcuda.so.1 of a Spark: one GB10, where its device file is there. cuInit leaves what its process
// has mapped in /tmp/mapped, for who wants to know which library it was and what else was loaded.
#include <stdio.h>

enum { SUCCESS = 0, NO_DEVICE = 100, MAJOR = 75, MINOR = 76, INTEGRATED = 18 };

int cuInit(unsigned flags) {
    (void)flags;
    FILE *device = fopen("/dev/nvidiactl", "r");
    if (!device) return NO_DEVICE;
    fclose(device);
    FILE *from = fopen("/proc/self/maps", "r"), *to = fopen("/tmp/mapped", "w");
    for (int c; from && to && (c = fgetc(from)) != EOF;) fputc(c, to);
    if (from) fclose(from);
    if (to) fclose(to);
    return SUCCESS;
}

int cuDeviceGetCount(int *count) {
    *count = 1;
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == MAJOR ? 12 : attribute == MINOR || attribute == INTEGRATED;
    return SUCCESS;
}

int cuDeviceGetName(char *name, int size, int device) {
    (void)device;
    snprintf(name, (size_t)size, "NVIDIA GB10");
    return SUCCESS;
}

int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    (void)device;
    *bytes = (size_t)128 << 30;
    return SUCCESS;
}
