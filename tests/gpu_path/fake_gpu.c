/* The CUDA runtime, cuBLAS, cuDNN, NVRTC and cuRAND as libtransformer_engine.so needs them to be loaded, without a GPU.
 *
 * Transformer Engine's library links against these and, before it names an attention backend, asks the CUDA runtime for
 * the device's compute capability and cuDNN for its version. Both are answered here with what the test sets. Nothing
 * computes: install.sh adds a function that fails for every other symbol that the library asks for.
 */
#include <stddef.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 801, DEVICES = 4, MAJOR = 75, MINOR = 76, MULTIPROCESSORS = 16 };

/* Transformer Engine keeps the capability of a device that it has asked once: one device for each capability. */
static const int capabilities[DEVICES] = {90, 80, 100, 120};
static int device = 0;
static size_t cudnn = 91800;

/* What tests call, with an index of `capabilities`, and a version as cuDNN counts them, 91800 is 9.18.0. */
void fake_gpu_set(int which, size_t cudnn_version) { device = which, cudnn = cudnn_version; }

size_t cudnnGetVersion(void) { return cudnn; }
int cudaGetDevice(int *which) { return *which = device, SUCCESS; }
int cudaSetDevice(int which) { return device = which, SUCCESS; }
int cudaGetDeviceCount(int *count) { return *count = DEVICES, SUCCESS; }
int cudaRuntimeGetVersion(int *version) { return *version = 13000, SUCCESS; }
int cudaDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }

static int attribute(int *value, int which, int of) {
  *value = which == MAJOR             ? capabilities[of] / 10
           : which == MINOR           ? capabilities[of] % 10
           : which == MULTIPROCESSORS ? 132
                                      : 1;
  return SUCCESS;
}
/* The head of `struct cudaDeviceProp` in CUDA 13's driver_types.h, as far as it is read. */
struct properties {
  char name[256], uuid[16], luid[8];
  unsigned mask;
  size_t memory, shared;
  int registers, warp;
  size_t pitch;
  int threads, block[3], grid[3];
  size_t constants;
  int major, minor;
  size_t texture, texture_pitch;
  int multiprocessors;
};
int cudaGetDeviceProperties(struct properties *of, int which) {
  of->major = capabilities[which] / 10, of->minor = capabilities[which] % 10, of->multiprocessors = 132;
  return SUCCESS;
}

int cudaDeviceGetAttribute(int *value, int which, int of) { return attribute(value, which, of); }

static int nothing(void) { return SUCCESS; }
/* Entry points of the driver: attributes are answered, the rest does nothing. */
int cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, unsigned long long flags,
                                     int *found) {
  *function = strcmp(name, "cuDeviceGetAttribute") ? (void *)nothing : (void *)attribute;
  if (found) *found = SUCCESS;
  return SUCCESS;
}

const char *refused(void) { return "tests/gpu_path/fake_gpu.c has no device"; }
const char *cudaGetErrorString(int error) { return refused(); }
const char *cudnnGetErrorString(int error) { return refused(); }
const char *cublasGetStatusString(int error) { return refused(); }
const char *nvrtcGetErrorString(int error) { return refused(); }
