/* A small stand-in for libnvidia-ml.so.1: FAKE_NVML_GPUS GPUs (default 2) with clocks, locks and counters.
 *
 * FAKE_NVML_FAIL="<function>=<code>" makes that function return that NVML error code.
 * FAKE_NVML_REASONS sets the clock event reasons (a number).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, INSUFFICIENT_SIZE = 7 };
enum { MAX_GPUS = 8, TOP_MHZ = 1380, LOWEST_MHZ = 135, STEP_MHZ = 15, MEMORY_MHZ = 877, IDLE_MEMORY_MHZ = 405 };

struct gpu {
    unsigned locked_mhz;
};
struct utilization {
    unsigned gpu, memory;
};

static struct gpu gpus[MAX_GPUS];
static int started;

static int failure(const char *function) {
    const char *wanted = getenv("FAKE_NVML_FAIL");
    size_t length = strlen(function);
    if (wanted && strncmp(wanted, function, length) == 0 && wanted[length] == '=')
        return atoi(wanted + length + 1);
    return started ? SUCCESS : UNINITIALIZED;
}

#define ENTER                                  \
    do {                                       \
        int failed_ = failure(__func__);       \
        if (failed_ != SUCCESS) return failed_; \
    } while (0)

static unsigned count(void) {
    const char *wanted = getenv("FAKE_NVML_GPUS");
    return wanted ? (unsigned)atoi(wanted) : 2;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    started = 1;
    ENTER;
    return SUCCESS;
}

int nvmlShutdown(void) {
    ENTER;
    started = 0;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    (void)code;
    return "an error only the driver knows";
}

int nvmlSystemGetDriverVersion(char *out, unsigned length) {
    ENTER;
    snprintf(out, length, "550.54.15");
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *out) {
    ENTER;
    *out = count();
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct gpu **out) {
    ENTER;
    if (index >= count()) return INVALID_ARGUMENT;
    *out = &gpus[index];
    return SUCCESS;
}

int nvmlDeviceGetUUID(struct gpu *gpu, char *out, unsigned length) {
    ENTER;
    snprintf(out, length, "GPU-fake-%d", (int)(gpu - gpus));
    return SUCCESS;
}

int nvmlDeviceGetName(struct gpu *gpu, char *out, unsigned length) {
    ENTER;
    (void)gpu;
    snprintf(out, length, "Tesla Fake");
    return SUCCESS;
}

int nvmlDeviceGetSupportedMemoryClocks(struct gpu *gpu, unsigned *size, unsigned *out) {
    ENTER;
    (void)gpu;
    if (*size < 2) {
        *size = 2;
        return INSUFFICIENT_SIZE;
    }
    *size = 2;
    out[0] = MEMORY_MHZ;
    out[1] = IDLE_MEMORY_MHZ;
    return SUCCESS;
}

int nvmlDeviceGetSupportedGraphicsClocks(struct gpu *gpu, unsigned memory_mhz, unsigned *size, unsigned *out) {
    ENTER;
    (void)gpu;
    /* At the low memory clock only the lowest SM clock works, as on real parts. */
    unsigned top = memory_mhz == MEMORY_MHZ ? TOP_MHZ : LOWEST_MHZ;
    unsigned needed = (top - LOWEST_MHZ) / STEP_MHZ + 1;
    if (*size < needed) {
        *size = needed;
        return INSUFFICIENT_SIZE;
    }
    *size = needed;
    for (unsigned i = 0; i < needed; i++) out[i] = top - i * STEP_MHZ;
    return SUCCESS;
}

int nvmlDeviceSetGpuLockedClocks(struct gpu *gpu, unsigned lowest_mhz, unsigned highest_mhz) {
    ENTER;
    if (lowest_mhz != highest_mhz) return INVALID_ARGUMENT;
    gpu->locked_mhz = highest_mhz;
    return SUCCESS;
}

int nvmlDeviceResetGpuLockedClocks(struct gpu *gpu) {
    ENTER;
    gpu->locked_mhz = 0;
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(struct gpu *gpu, int kind, unsigned *out) {
    ENTER;
    if (kind != 1) return INVALID_ARGUMENT; /* 1 is NVML_CLOCK_SM */
    *out = gpu->locked_mhz ? gpu->locked_mhz : TOP_MHZ;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(struct gpu *gpu, unsigned *out) {
    ENTER;
    *out = gpu->locked_mhz ? 120500 : 174250;
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(struct gpu *gpu, unsigned long long *out) {
    ENTER;
    (void)gpu;
    *out = 5000000001500ULL;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(struct gpu *gpu, struct utilization *out) {
    ENTER;
    (void)gpu;
    out->gpu = 37;
    out->memory = 12;
    return SUCCESS;
}

static int reasons(unsigned long long *out) {
    const char *wanted = getenv("FAKE_NVML_REASONS");
    *out = wanted ? strtoull(wanted, NULL, 0) : 0;
    return SUCCESS;
}

#ifdef FAKE_NVML_OLD_DRIVER
int nvmlDeviceGetCurrentClocksThrottleReasons(struct gpu *gpu, unsigned long long *out) {
#else
int nvmlDeviceGetCurrentClocksEventReasons(struct gpu *gpu, unsigned long long *out) {
#endif
    ENTER;
    (void)gpu;
    return reasons(out);
}
