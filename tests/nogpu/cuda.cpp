// A CUDA runtime, driver, cuBLAS and cuDNN for a machine without a GPU: the host side of all calls, kernels that do nothing.
//
// Device memory is host memory, whose contents never change. Streams, events and captures are tracked, and operations that
// CUDA refuses within a capture (waiting, allocating, work outside it) are refused and reported. Functions that are not
// here return 0 (build.sh makes them).

#include <cuda.h>
#include <dlfcn.h>
#include <driver_types.h>
#include <pthread.h>
#include <sys/mman.h>
#include <time.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#define API extern "C" __attribute__((visibility("default")))
#define LOCKED std::lock_guard<std::recursive_mutex> locked(mutex)

typedef cudaError_t Error;

struct Graph {
  pthread_t thread;
  std::map<std::string, long> kernels;
};
struct Stream {
  Graph* capture = nullptr;
};
struct Event {
  Graph* capture = nullptr;
};
struct Handle {  // handle of cuBLAS or cuDNN
  void* stream = nullptr;
};
struct Dim {
  unsigned x, y, z;
};

static std::recursive_mutex mutex;
static std::map<const void*, std::string> kernel_names;
static std::map<std::string, long> counts;
static std::map<char*, size_t> device_memory, pinned_memory;
static std::map<Graph*, bool> captures;  // captures in progress
static bool waiting_forbidden = false;
static thread_local Error last_error = cudaSuccess;
static thread_local bool relaxed = false;

static Error fail(Error error, const std::string& what) {
  fprintf(stderr, "no GPU: %s\n", what.c_str());
  return last_error = error;
}

// Streams 0 to 2 are CUDA's own.
static Stream* own(void* stream) { return (size_t)stream > 2 ? (Stream*)stream : nullptr; }
static Graph* capture_of(void* stream) { return own(stream) ? own(stream)->capture : nullptr; }
static bool capturing() {
  for (auto& [graph, _] : captures)
    if (pthread_equal(graph->thread, pthread_self())) return true;
  return false;
}

static Error launch(const std::string& name, void* stream) {
  LOCKED;
  if (Graph* graph = capture_of(stream)) {
    graph->kernels[name]++;
    return cudaSuccess;
  }
  if (capturing()) return fail(cudaErrorStreamCaptureImplicit, name + " beside the capture");
  counts[name]++;
  return cudaSuccess;
}

static Error wait(const std::string& name) {
  LOCKED;
  counts["wait:" + name]++;
  if (capturing()) return fail(cudaErrorStreamCaptureUnsupported, name + " in a capture");
  if (waiting_forbidden) return fail(cudaErrorNotPermitted, name + " where nothing should wait");
  return cudaSuccess;
}

static Error unsafe(const std::string& name) {
  if (capturing() && !relaxed) return fail(cudaErrorStreamCaptureUnsupported, name + " in a capture");
  counts["call:" + name]++;
  return cudaSuccess;
}

static bool lies_in(std::map<char*, size_t>& memory, const void* p) {
  auto after = memory.upper_bound((char*)p);
  if (after == memory.begin()) return false;
  --after;
  return (char*)p < after->first + after->second;
}

// Interface of count.py

API void nogpu_forbid_waiting(int forbidden) { waiting_forbidden = forbidden; }

// Writes "count<tab>name" lines and resets the counts.
API long nogpu_take_counts(char* out, long size) {
  LOCKED;
  std::string lines;
  for (auto& [name, count] : counts) lines += std::to_string(count) + "\t" + name + "\n";
  counts.clear();
  snprintf(out, size, "%s", lines.c_str());
  return lines.size();
}

// The device, with an H100's properties

API Error cudaGetDeviceCount(int* n) { return *n = 1, cudaSuccess; }
API Error cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
API Error cudaSetDevice(int) { return cudaSuccess; }
API Error cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
API Error cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
API Error cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "no GPU");
  p->totalGlobalMem = 80ull << 30;
  p->major = 9;
  p->multiProcessorCount = 132;
  p->warpSize = 32;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = 232448;
  p->sharedMemPerMultiprocessor = 233472;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->textureAlignment = 512;
  p->l2CacheSize = 50 << 20;
  p->concurrentKernels = p->unifiedAddressing = p->cooperativeLaunch = p->clusterLaunch = 1;
  p->asyncEngineCount = 3;
  return cudaSuccess;
}
static int attribute(int name) {
  static const std::map<int, int> known = {
      {1, 1024}, {2, 1024},   {3, 1024},    {4, 64},      {5, 2147483647}, {6, 65535},  {7, 65535},
      {8, 49152}, {10, 32},   {12, 65536},  {13, 1980000}, {16, 132},      {31, 1},     {36, 2619000},
      {37, 5120}, {38, 50 << 20}, {39, 2048}, {41, 1},     {75, 9},         {76, 0},     {81, 233472},
      {82, 65536}, {95, 1},   {97, 232448}, {106, 32}};
  auto found = known.find(name);
  return found == known.end() ? 0 : found->second;
}
API Error cudaDeviceGetAttribute(int* value, int name, int) { return *value = attribute(name), cudaSuccess; }
API Error cudaDeviceGetPCIBusId(char* id, int size, int) { return snprintf(id, size, "0000:00:00.0"), cudaSuccess; }
API Error cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}
API Error cudaDeviceSynchronize() { return wait("cudaDeviceSynchronize"); }
API Error cudaGetLastError() {
  Error error = last_error;
  last_error = cudaSuccess;
  return error;
}
API Error cudaPeekAtLastError() { return last_error; }
API const char* cudaGetErrorString(Error error) {
  static thread_local char text[64];
  snprintf(text, sizeof text, "error %d of the missing GPU", error);
  return text;
}
API const char* cudaGetErrorName(Error error) { return cudaGetErrorString(error); }
API Error cudaGetDriverEntryPointByVersion(const char* name, void** f, unsigned, unsigned long long, int* status) {
  *f = dlsym(dlopen("libcuda.so.1", RTLD_NOW), name);
  if (status) *status = *f ? 0 : 1;
  return cudaSuccess;
}

// Memory

API Error cudaMalloc(void** p, size_t size) {
  LOCKED;
  counts["call:cudaMalloc"]++;
  size = (size + 511) & ~511ull;
  *p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  device_memory[(char*)*p] = size;
  return cudaSuccess;
}
API Error cudaFree(void* p) {
  LOCKED;
  if (!p) return cudaSuccess;
  if (Error error = unsafe("cudaFree")) return error;
  munmap(p, device_memory[(char*)p]);
  device_memory.erase((char*)p);
  return cudaSuccess;
}
API Error cudaHostAlloc(void** p, size_t size, unsigned) {
  LOCKED;
  if (Error error = unsafe("cudaHostAlloc")) return error;
  *p = malloc(size + 64);
  pinned_memory[(char*)*p] = size;
  return cudaSuccess;
}
API Error cudaFreeHost(void* p) {
  LOCKED;
  pinned_memory.erase((char*)p);
  free(p);
  return cudaSuccess;
}
API Error cudaHostRegister(void* p, size_t size, unsigned) {
  LOCKED;
  pinned_memory[(char*)p] = size;
  return cudaSuccess;
}
API Error cudaHostUnregister(void* p) {
  LOCKED;
  pinned_memory.erase((char*)p);
  return cudaSuccess;
}
API Error cudaMemGetInfo(size_t* free, size_t* total) {
  LOCKED;
  *free = *total = 80ull << 30;
  for (auto& [_, size] : device_memory) *free -= size;
  return cudaSuccess;
}
API Error cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  LOCKED;
  memset(a, 0, sizeof *a);
  bool device = lies_in(device_memory, p), pinned = lies_in(pinned_memory, p);
  a->type = device ? cudaMemoryTypeDevice : pinned ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  if (device || pinned) a->devicePointer = (void*)p;
  if (pinned) a->hostPointer = (void*)p;
  return cudaSuccess;
}
API Error cudaMemcpyAsync(void* to, const void* from, size_t size, int, void* stream) {
  {
    LOCKED;
    auto place = [](const void* p) {
      return std::string(lies_in(device_memory, p) ? "device" : lies_in(pinned_memory, p) ? "pinned" : "pageable");
    };
    std::string name = "copy:" + place(from) + " to " + place(to);
    if (capture_of(stream) && name.find("pageable") != std::string::npos)
      return fail(cudaErrorStreamCaptureUnsupported, name + " in a capture");
    if (Error error = launch(name, stream)) return error;
    if (capture_of(stream)) return cudaSuccess;
  }
  memcpy(to, from, size);
  return cudaSuccess;
}
API Error cudaMemcpy(void* to, const void* from, size_t size, int) {
  if (Error error = wait("cudaMemcpy")) return error;
  memcpy(to, from, size);
  return cudaSuccess;
}
API Error cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                            int, void* stream) {
  if (Error error = launch("copy:2D", stream)) return error;
  if (!capture_of(stream))
    for (size_t i = 0; i < height; i++) memcpy((char*)to + i * to_pitch, (char*)from + i * from_pitch, width);
  return cudaSuccess;
}
API Error cudaMemset(void* p, int value, size_t size) { return memset(p, value, size), cudaSuccess; }
API Error cudaMemsetAsync(void* p, int value, size_t size, void* stream) {
  if (Error error = launch("memset", stream)) return error;
  if (!capture_of(stream)) memset(p, value, size);
  return cudaSuccess;
}
API Error cudaGetSymbolAddress(void** p, const void*) { return *p = calloc(1, 65536), cudaSuccess; }

// Streams, events, captures

API Error cudaStreamCreateWithPriority(void** stream, unsigned, int) { return *stream = new Stream, cudaSuccess; }
API Error cudaStreamCreate(void** stream) { return *stream = new Stream, cudaSuccess; }
API Error cudaStreamSynchronize(void*) { return wait("cudaStreamSynchronize"); }
API Error cudaStreamQuery(void*) { return cudaSuccess; }
API Error cudaEventCreate(void** event) { return *event = new Event, cudaSuccess; }
API Error cudaEventCreateWithFlags(void** event, unsigned) { return *event = new Event, cudaSuccess; }
API Error cudaEventRecord(void* event, void* stream) {
  LOCKED;
  ((Event*)event)->capture = capture_of(stream);
  return cudaSuccess;
}
API Error cudaEventRecordWithFlags(void* event, void* stream, unsigned) { return cudaEventRecord(event, stream); }
API Error cudaEventQuery(void*) {
  LOCKED;
  return unsafe("cudaEventQuery");
}
API Error cudaEventSynchronize(void*) { return wait("cudaEventSynchronize"); }
API Error cudaEventElapsedTime(float* ms, void*, void*) { return *ms = 0.05f, cudaSuccess; }
API Error cudaStreamWaitEvent(void* stream, void* event, unsigned) {
  LOCKED;
  Graph* graph = ((Event*)event)->capture;
  if (graph && captures.count(graph) && own(stream)) own(stream)->capture = graph;
  else if (capture_of(stream)) return fail(cudaErrorStreamCaptureIsolation, "a capture waits for an event outside of it");
  return cudaSuccess;
}
API Error cudaStreamAddCallback(void* stream, void (*f)(void*, Error, void*), void* data, unsigned) {
  f(stream, cudaSuccess, data);
  return cudaSuccess;
}
API Error cudaLaunchHostFunc(void*, void (*f)(void*), void* data) { return f(data), cudaSuccess; }
API Error cudaStreamBeginCapture(void* stream, int) {
  LOCKED;
  if (!own(stream)) return fail(cudaErrorStreamCaptureUnsupported, "capture of a stream of CUDA's own");
  Graph* graph = own(stream)->capture = new Graph{pthread_self(), {}};
  captures[graph] = true;
  return cudaSuccess;
}
API Error cudaStreamEndCapture(void* stream, void** graph) {
  LOCKED;
  if (!capture_of(stream)) return fail(cudaErrorStreamCaptureInvalidated, "no capture to end");
  *graph = capture_of(stream);
  captures.erase(capture_of(stream));
  own(stream)->capture = nullptr;
  return cudaSuccess;
}
API Error cudaStreamIsCapturing(void* stream, int* status) {
  LOCKED;
  return *status = captures.count(capture_of(stream)), cudaSuccess;
}
API Error cudaStreamGetCaptureInfo(void* stream, int* status, unsigned long long* id, void** graph, const void***,
                                   const void**, size_t*) {
  LOCKED;
  Graph* found = capture_of(stream);
  *status = captures.count(found);
  if (*status && id) *id = (unsigned long long)found;
  if (*status && graph) *graph = found;
  return cudaSuccess;
}
API Error cudaThreadExchangeStreamCaptureMode(int* mode) {
  int before = relaxed ? 2 : 0;
  relaxed = *mode == 2;
  *mode = before;
  return cudaSuccess;
}
API Error cudaGraphInstantiateWithFlags(void** instance, void* graph, unsigned long long) {
  return *instance = graph, cudaSuccess;
}
API Error cudaGraphLaunch(void* graph, void*) {
  LOCKED;
  counts["call:cudaGraphLaunch"]++;
  for (auto& [name, count] : ((Graph*)graph)->kernels) counts[name] += count;
  return cudaSuccess;
}
API Error cudaGraphGetNodes(void* graph, void**, size_t* n) {
  *n = 0;
  for (auto& [_, count] : ((Graph*)graph)->kernels) *n += count;
  return cudaSuccess;
}

// PyTorch's own kernels

struct Configuration {
  Dim grid, block;
  size_t shared;
  void* stream;
};
static thread_local Configuration configurations[16];
static thread_local int configured = 0;

static std::string name_of(const void* kernel) {
  LOCKED;
  auto found = kernel_names.find(kernel);
  return "torch:" + (found == kernel_names.end() ? "?" : found->second);
}
API void** __cudaRegisterFatBinary(void*) { return (void**)calloc(1, 64); }
API void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*, int*) {
  LOCKED;
  kernel_names[host] = name;
}
API char __cudaInitModule(void**) { return 1; }
API unsigned __cudaPushCallConfiguration(Dim grid, Dim block, size_t shared, void* stream) {
  configurations[configured++ & 15] = {grid, block, shared, stream};
  return 0;
}
API Error __cudaPopCallConfiguration(Dim* grid, Dim* block, size_t* shared, void** stream) {
  Configuration& c = configurations[--configured & 15];
  *grid = c.grid, *block = c.block, *shared = c.shared, *stream = c.stream;
  return cudaSuccess;
}
API Error __cudaGetKernel(void** kernel, const void* f) { return *kernel = (void*)f, cudaSuccess; }
API Error __cudaLaunchKernel(void* f, Dim, Dim, void**, size_t, void* stream) { return launch(name_of(f), stream); }
API Error cudaLaunchKernel(const void* f, Dim, Dim, void**, size_t, void* stream) { return launch(name_of(f), stream); }
API Error cudaLaunchCooperativeKernel(const void* f, Dim, Dim, void**, size_t, void* stream) {
  return launch(name_of(f), stream);
}
API Error cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* f, void**) { return launch(name_of(f), c->stream); }
API Error cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024;
  a->numRegs = 32;
  a->maxDynamicSharedSizeBytes = 49152;
  a->binaryVersion = a->ptxVersion = 90;
  return cudaSuccess;
}
API Error cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void*, int, size_t) { return *n = 4, cudaSuccess; }
API Error cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void*, int, size_t, unsigned) {
  return *n = 4, cudaSuccess;
}

// The driver: Triton's kernels

API CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
API CUresult cuDriverGetVersion(int* version) { return *version = 13000, CUDA_SUCCESS; }
API CUresult cuDeviceGet(CUdevice* device, int) { return *device = 0, CUDA_SUCCESS; }
API CUresult cuDeviceGetCount(int* n) { return *n = 1, CUDA_SUCCESS; }
API CUresult cuDeviceGetAttribute(int* v, CUdevice_attribute a, CUdevice) { return *v = attribute(a), CUDA_SUCCESS; }
API CUresult cuCtxGetCurrent(CUcontext* context) { return *context = (CUcontext)1, CUDA_SUCCESS; }
API CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) { return *context = (CUcontext)1, CUDA_SUCCESS; }
API CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  if (flags) *flags = 0;
  return *active = 1, CUDA_SUCCESS;
}
API CUresult cuGetErrorString(CUresult, const char** text) { return *text = "error of the missing GPU", CUDA_SUCCESS; }
API CUresult cuModuleLoadData(CUmodule* module, const void*) { return *module = (CUmodule)1, CUDA_SUCCESS; }
API CUresult cuModuleLoad(CUmodule* module, const char*) { return *module = (CUmodule)1, CUDA_SUCCESS; }
API CUresult cuModuleGetFunction(CUfunction* f, CUmodule, const char* name) {
  return *f = (CUfunction) new std::string(std::string("triton:") + name), CUDA_SUCCESS;
}
API CUresult cuFuncGetAttribute(int* value, CUfunction_attribute name, CUfunction) {
  *value = name == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : name == CU_FUNC_ATTRIBUTE_NUM_REGS ? 32 : 0;
  return CUDA_SUCCESS;
}
API CUresult cuLaunchKernel(CUfunction f, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                            CUstream stream, void**, void**) {
  return (CUresult)launch(*(std::string*)f, stream);
}
API CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction f, void**, void**) {
  return (CUresult)launch(*(std::string*)f, c->hStream);
}
API CUresult cuPointerGetAttribute(void* value, CUpointer_attribute name, CUdeviceptr p) {
  if (name == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *(CUdeviceptr*)value = p;
  else *(unsigned*)value = CU_MEMORYTYPE_DEVICE;
  return CUDA_SUCCESS;
}

// cuBLAS

API int cublasCreate_v2(void** handle) { return *handle = new Handle, 0; }
API int cublasSetStream_v2(void* handle, void* stream) { return ((Handle*)handle)->stream = stream, 0; }
API int cublasGetMathMode(void*, int* mode) { return *mode = 0; }
API int cublasGetPointerMode_v2(void*, int* mode) { return *mode = 0; }
#define PRODUCT(name) \
  API int name(void* handle) { return launch("blas:" #name, ((Handle*)handle)->stream) ? 14 : 0; }
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasSgemmEx)
PRODUCT(cublasGemmEx)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasSgemv_v2)
PRODUCT(cublasSdot_v2)
PRODUCT(cublasDotEx)
API int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void* found, int* n) {
  memset(found, 0, 96);
  return *n = 1, 0;
}
API int cublasLtMatmulDescCreate(void** d, int, int) { return *d = malloc(64), 0; }
API int cublasLtMatrixLayoutCreate(void** d, int, unsigned long, unsigned long, long) { return *d = malloc(64), 0; }
API int cublasLtMatmulPreferenceCreate(void** d) { return *d = malloc(64), 0; }
API int cublasLtMatmul(void*, void*, const void*, const void*, void*, const void*, void*, const void*, const void*, void*,
                       void*, void*, void*, void*, size_t, void* stream) {
  return launch("blas:cublasLtMatmul", stream) ? 14 : 0;
}

// cuDNN 9.19, the version that PyTorch asks for

API size_t cudnnGetVersion() { return 91900; }
API size_t cudnnGetCudartVersion() { return 13000; }
API int cudnnGetProperty(int part, int* value) { return *value = part == 0 ? 9 : part == 1 ? 19 : 0, 0; }
API int cudnnCreate(void** handle) { return *handle = new Handle, 0; }
API int cudnnSetStream(void* handle, void* stream) { return ((Handle*)handle)->stream = stream, 0; }
API int cudnnGetStream(void* handle, void** stream) { return *stream = ((Handle*)handle)->stream, 0; }
API const char* cudnnGetErrorString(int) { return "error of the missing cuDNN"; }
API int cudnnBackendCreateDescriptor(int, void** d) { return *d = calloc(1, 256), 0; }
API int cudnnBackendGetAttribute(void*, int name, int type, int64_t n, int64_t* count, void* out) {
  const int RESULTS_OF_HEURISTICS = 202, INT64 = 3;
  bool number = type == INT64 && n > 0 && out;
  if (number) *(int64_t*)out = 1024;
  if (count) *count = number || name == RESULTS_OF_HEURISTICS;
  return 0;
}
API int cudnnBackendExecute(void* handle, void*, void*) {
  return launch("cudnn:execute", ((Handle*)handle)->stream) ? 8 : 0;
}

// CUPTI and NCCL

API int cuptiGetTimestamp(uint64_t* now) {
  timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return *now = t.tv_sec * 1000000000ull + t.tv_nsec, 0;
}
API int cuptiGetResultString(int, const char** text) { return *text = "no GPU", 0; }
API const char* ncclGetErrorString(int) { return "no GPU"; }
