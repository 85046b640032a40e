/* A stand-in for libnvidia-ml.so.1: a few GPUs with clocks, locks, power limits and counters.
 *
 * Locks and limits outlive the process that set them, as in a driver: they live in the file FAKE_NVML_STATE
 * (zeros at first), which every process maps; without it they last as long as the process.
 *
 * What goes wrong is said in the file FAKE_NVML_CONTROL, read anew at every call, one order a line:
 *   gpus N                             how many there are (2)
 *   fail FUNCTION CODE [FIRST [LAST]]  calls FIRST to LAST of this process (1 to forever) return CODE
 *   hang FUNCTION [GPU]                does not return for as long as the order stands
 *   lose GPU                           every call about it answers GPU_IS_LOST
 *   observe GPU MHZ                    reports this SM clock whatever was commanded
 *   reasons GPU BITS                   its clock event reasons, besides SwPowerCap under a binding limit
 *   draw GPU MILLIWATTS                board power at the top clock (174250); it falls with the clock squared
 *   busy GPU PERCENT                   its utilisation (37)
 *   call_ms N, settle_ms N             how long a clock command blocks, and how much later it is in force
 *   mig GPU | persistence 0 | ecc GPU ERRORS | remap GPU
 * A FUNCTION that ends in * stands for every name that begins so.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6 };
enum { INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };
enum { MAX_GPUS = 16, TOP_MHZ = 1380, LOWEST_MHZ = 135, STEP_MHZ = 15, MEMORY_MHZ = 877, IDLE_MEMORY_MHZ = 405 };
enum { IDLE_MW = 40000, DRAW_MW = 174250, LEAST_LIMIT_MW = 100000, LIMIT_MW = 250000, AVERAGE_LAG_MW = 1000 };
enum { POWER_AVERAGE = 185, POWER_INSTANT = 186, UNSIGNED_INT = 1, SW_POWER_CAP = 4, MAX_FUNCTIONS = 64 };

struct gpu {
    uint32_t locked_mhz, before_mhz, limit_mw, clock_commands, limit_commands, unused;
    uint64_t commanded_ns, limited_ns; /* CLOCK_MONOTONIC of the last clock command and power limit */
};
struct utilization {
    unsigned gpu, memory;
};
struct field_value {
    uint32_t id, scope;
    int64_t timestamp, latency_us;
    int32_t type, code;
    union {
        double d;
        uint32_t ui;
        unsigned long long ull;
    } value;
};

static struct gpu own[MAX_GPUS], *gpus = own;
static int started;
static struct {
    char name[64];
    unsigned calls;
} counted[MAX_FUNCTIONS];

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void wait_ms(unsigned ms) {
    struct timespec span = {ms / 1000, (long)(ms % 1000) * 1000000};
    nanosleep(&span, NULL);
}

static int is_about(const char *pattern, const char *function) {
    size_t length = strlen(pattern);
    if (length && pattern[length - 1] == '*') return strncmp(pattern, function, length - 1) == 0;
    return strcmp(pattern, function) == 0;
}

/* One more call of `function` by this process. */
static unsigned count_call(const char *function) {
    for (int i = 0; i < MAX_FUNCTIONS; i++) {
        if (!counted[i].name[0]) strncpy(counted[i].name, function, sizeof counted[i].name - 1);
        if (strcmp(counted[i].name, function) == 0) return ++counted[i].calls;
    }
    return 0;
}

/* The next line of the control file that begins with `order`: what follows it, or NULL at the end. */
static char *next_order(FILE *control, const char *order, char line[256]) {
    size_t length = strlen(order);
    while (control && fgets(line, 256, control))
        if (strncmp(line, order, length) == 0 && line[length] == ' ') return line + length + 1;
    if (control) fclose(control);
    return NULL;
}

static FILE *control_file(void) {
    const char *path = getenv("FAKE_NVML_CONTROL");
    return path ? fopen(path, "re") : NULL;
}

static unsigned number(const char *order, unsigned otherwise) {
    char line[256], *rest = next_order(control_file(), order, line);
    return rest ? (unsigned)strtoul(rest, NULL, 0) : otherwise;
}

static unsigned long long number_of(const struct gpu *gpu, const char *order, unsigned long long otherwise) {
    char line[256], *rest;
    unsigned long long found = otherwise;
    FILE *control = control_file();
    while ((rest = next_order(control, order, line)) != NULL) {
        char *end;
        if (strtol(rest, &end, 10) == gpu - gpus) found = strtoull(end, NULL, 0);
    }
    return found;
}

static int is_said_of(const struct gpu *gpu, const char *order) {
    char line[256], *rest;
    int found = 0;
    FILE *control = control_file();
    while ((rest = next_order(control, order, line)) != NULL)
        if (strtol(rest, NULL, 10) == gpu - gpus) found = 1;
    return found;
}

static int hangs(const char *function, const struct gpu *gpu) {
    char line[256], *rest, pattern[64];
    int index, found = 0;
    FILE *control = control_file();
    while ((rest = next_order(control, "hang", line)) != NULL) {
        int fields = sscanf(rest, "%63s %d", pattern, &index);
        if (is_about(pattern, function) && (fields < 2 || (gpu && index == gpu - gpus))) found = 1;
    }
    return found;
}

static int failure(const char *function, const struct gpu *gpu) {
    char line[256], *rest, pattern[64];
    unsigned calls = count_call(function);
    int code, failed = SUCCESS;
    while (hangs(function, gpu)) wait_ms(5);
    FILE *control = control_file();
    while ((rest = next_order(control, "fail", line)) != NULL) {
        unsigned first = 1, last = ~0u;
        if (sscanf(rest, "%63s %d %u %u", pattern, &code, &first, &last) >= 2 && is_about(pattern, function) &&
            first <= calls && calls <= last)
            failed = code;
    }
    if (failed != SUCCESS) return failed;
    if (!started) return UNINITIALIZED;
    return gpu && is_said_of(gpu, "lose") ? GPU_IS_LOST : SUCCESS;
}

#define ENTER(gpu)                                  \
    do {                                            \
        int failed_ = failure(__func__, gpu);       \
        if (failed_ != SUCCESS) return failed_;     \
    } while (0)

static unsigned count(void) { return number("gpus", 2); }

static unsigned limit_of(const struct gpu *gpu) { return gpu->limit_mw ? gpu->limit_mw : LIMIT_MW; }

static unsigned power_at(const struct gpu *gpu, unsigned clock_mhz) {
    uint64_t above = number_of(gpu, "draw", DRAW_MW) - IDLE_MW;
    return IDLE_MW + (unsigned)(above * clock_mhz * clock_mhz / ((uint64_t)TOP_MHZ * TOP_MHZ));
}

/* The clock asked for, once it has settled, before the power limit has its say. */
static unsigned wanted_clock(const struct gpu *gpu) {
    uint64_t settled_ns = gpu->commanded_ns + (uint64_t)number("settle_ms", 0) * 1000000u;
    unsigned clock_mhz = now_ns() < settled_ns ? gpu->before_mhz : gpu->locked_mhz;
    return clock_mhz ? clock_mhz : TOP_MHZ;
}

static unsigned clock_in_force(const struct gpu *gpu) {
    unsigned clock_mhz = wanted_clock(gpu);
    while (clock_mhz > LOWEST_MHZ && power_at(gpu, clock_mhz) > limit_of(gpu)) clock_mhz -= STEP_MHZ;
    return clock_mhz;
}

static void command_clock(struct gpu *gpu, unsigned clock_mhz) {
    wait_ms(number("call_ms", 0));
    gpu->before_mhz = wanted_clock(gpu);
    gpu->locked_mhz = clock_mhz;
    gpu->commanded_ns = now_ns();
    gpu->clock_commands++;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    const char *path = getenv("FAKE_NVML_STATE");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file >= 0 && gpus == own) {
        void *shared = mmap(NULL, sizeof own, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (shared != MAP_FAILED) gpus = shared;
    }
    if (file >= 0) close(file);
    started = 1;
    ENTER(NULL);
    return SUCCESS;
}

int nvmlShutdown(void) {
    ENTER(NULL);
    started = 0;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    (void)code;
    return "an error only the driver knows";
}

int nvmlSystemGetDriverVersion(char *out, unsigned length) {
    ENTER(NULL);
    snprintf(out, length, "550.54.15");
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *out) {
    ENTER(NULL);
    *out = count();
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct gpu **out) {
    if (index >= count()) return INVALID_ARGUMENT;
    ENTER(&gpus[index]);
    *out = &gpus[index];
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, struct gpu **out) {
    int index = -1;
    ENTER(NULL);
    if (sscanf(uuid, "GPU-fake-%d", &index) != 1 || index < 0 || (unsigned)index >= count()) return NOT_FOUND;
    *out = &gpus[index];
    return SUCCESS;
}

int nvmlDeviceGetIndex(struct gpu *gpu, unsigned *out) {
    ENTER(gpu);
    *out = (unsigned)(gpu - gpus);
    return SUCCESS;
}

int nvmlDeviceGetUUID(struct gpu *gpu, char *out, unsigned length) {
    ENTER(gpu);
    snprintf(out, length, "GPU-fake-%d", (int)(gpu - gpus));
    return SUCCESS;
}

int nvmlDeviceGetName(struct gpu *gpu, char *out, unsigned length) {
    ENTER(gpu);
    snprintf(out, length, "Tesla Fake");
    return SUCCESS;
}

int nvmlDeviceGetSupportedMemoryClocks(struct gpu *gpu, unsigned *size, unsigned *out) {
    ENTER(gpu);
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
    ENTER(gpu);
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
    ENTER(gpu);
    if (lowest_mhz != highest_mhz) return INVALID_ARGUMENT;
    command_clock(gpu, highest_mhz);
    return SUCCESS;
}

int nvmlDeviceResetGpuLockedClocks(struct gpu *gpu) {
    ENTER(gpu);
    command_clock(gpu, 0);
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(struct gpu *gpu, int kind, unsigned *out) {
    ENTER(gpu);
    if (kind != 1) return INVALID_ARGUMENT; /* 1 is NVML_CLOCK_SM */
    *out = (unsigned)number_of(gpu, "observe", clock_in_force(gpu));
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(struct gpu *gpu, unsigned *out) {
    ENTER(gpu);
    *out = power_at(gpu, clock_in_force(gpu)) - AVERAGE_LAG_MW;
    return SUCCESS;
}

int nvmlDeviceGetFieldValues(struct gpu *gpu, int fields, struct field_value *out) {
    ENTER(gpu);
    for (int i = 0; i < fields; i++) {
        out[i].code = NOT_SUPPORTED;
#ifndef FAKE_NVML_OLD_DRIVER
        if (out[i].id == POWER_INSTANT || out[i].id == POWER_AVERAGE) {
            unsigned lag = out[i].id == POWER_AVERAGE ? AVERAGE_LAG_MW : 0;
            out[i].code = SUCCESS;
            out[i].type = UNSIGNED_INT;
            out[i].value.ui = power_at(gpu, clock_in_force(gpu)) - lag;
        }
#endif
    }
    return SUCCESS;
}

int nvmlDeviceGetPowerManagementLimitConstraints(struct gpu *gpu, unsigned *least, unsigned *most) {
    ENTER(gpu);
    *least = LEAST_LIMIT_MW;
    *most = LIMIT_MW;
    return SUCCESS;
}

int nvmlDeviceGetPowerManagementDefaultLimit(struct gpu *gpu, unsigned *out) {
    ENTER(gpu);
    *out = LIMIT_MW;
    return SUCCESS;
}

int nvmlDeviceGetPowerManagementLimit(struct gpu *gpu, unsigned *out) {
    ENTER(gpu);
    *out = limit_of(gpu);
    return SUCCESS;
}

int nvmlDeviceSetPowerManagementLimit(struct gpu *gpu, unsigned limit_mw) {
    ENTER(gpu);
    if (limit_mw < LEAST_LIMIT_MW || limit_mw > LIMIT_MW) return INVALID_ARGUMENT;
    gpu->limit_mw = limit_mw;
    gpu->limited_ns = now_ns();
    gpu->limit_commands++;
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(struct gpu *gpu, unsigned long long *out) {
    ENTER(gpu);
    *out = 5000000001500ULL;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(struct gpu *gpu, struct utilization *out) {
    ENTER(gpu);
    out->gpu = (unsigned)number_of(gpu, "busy", 37);
    out->memory = 12;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(struct gpu *gpu, int sensor, unsigned *out) {
    ENTER(gpu);
    if (sensor != 0) return INVALID_ARGUMENT;
    *out = 41;
    return SUCCESS;
}

int nvmlDeviceGetPersistenceMode(struct gpu *gpu, int *out) {
    ENTER(gpu);
    *out = (int)number("persistence", 1);
    return SUCCESS;
}

int nvmlDeviceGetMigMode(struct gpu *gpu, unsigned *current, unsigned *pending) {
    ENTER(gpu);
    *current = *pending = (unsigned)is_said_of(gpu, "mig");
    return *current ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetTotalEccErrors(struct gpu *gpu, int kind, int counter, unsigned long long *out) {
    ENTER(gpu);
    if (kind != 1 || counter != 0) return INVALID_ARGUMENT; /* uncorrected, since the last boot */
    *out = number_of(gpu, "ecc", 0);
    return SUCCESS;
}

int nvmlDeviceGetRemappedRows(struct gpu *gpu, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                              unsigned *failed) {
    ENTER(gpu);
    *corrected = *failed = 0;
    *uncorrected = *pending = (unsigned)is_said_of(gpu, "remap");
    return SUCCESS;
}

#ifdef FAKE_NVML_OLD_DRIVER
int nvmlDeviceGetCurrentClocksThrottleReasons(struct gpu *gpu, unsigned long long *out) {
#else
int nvmlDeviceGetCurrentClocksEventReasons(struct gpu *gpu, unsigned long long *out) {
#endif
    ENTER(gpu);
    *out = number_of(gpu, "reasons", 0);
    if (clock_in_force(gpu) < wanted_clock(gpu)) *out |= SW_POWER_CAP;
    return SUCCESS;
}
