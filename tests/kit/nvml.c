/* A libnvidia-ml.so.1 that says what lies in the file beside it: lines of KEY=VALUE, a line "gpu" before each GPU's. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { GPUS = 32, PAIRS = 48, NOT_SUPPORTED = 3, LOST = 15 };
typedef void *Device;
typedef unsigned long long u64;
static struct { char key[40], value[96]; } pairs[GPUS + 1][PAIRS];
static int counts[GPUS + 1], gpus;

static const char *get(long section, const char *key) {
    for (int i = 0; i < counts[section]; i++)
        if (!strcmp(pairs[section][i].key, key)) return pairs[section][i].value;
    return NULL;
}

static void load(void) {
    Dl_info self;
    char path[4096], line[160];
    dladdr((void *)load, &self);
    snprintf(path, sizeof path, "%s.state", self.dli_fname);
    FILE *file = fopen(path, "r");
    for (gpus = 0; file && fgets(line, sizeof line, file);) {
        line[strcspn(line, "\n")] = 0;
        char *value = strchr(line, '=');
        if (!strcmp(line, "gpu")) gpus++;
        else if (value && counts[gpus] < PAIRS) {
            *value++ = 0;
            snprintf(pairs[gpus][counts[gpus]].key, 40, "%s", line);
            snprintf(pairs[gpus][counts[gpus]++].value, 96, "%s", value);
        }
    }
    if (file) fclose(file);
}

static int number(Device device, const char *key, u64 *out) {
    const char *value;
    while (get((long)device, "hang")) pause();
    if (get((long)device, "lost")) return LOST;
    if (!(value = get((long)device, key))) return NOT_SUPPORTED;
    *out = strtoull(value, NULL, 0);
    return 0;
}

static int small(Device device, const char *key, unsigned *out) {
    u64 found;
    int status = number(device, key, &found);
    if (!status) *out = (unsigned)found;
    return status;
}

static int text(long section, const char *key, char *out, unsigned size) {
    const char *value = get(section, key);
    if (!value) return NOT_SUPPORTED;
    snprintf(out, size, "%s", value);
    return 0;
}

#define SMALL(NAME, KEY) int NAME(Device device, unsigned *out) { return small(device, KEY, out); }
#define LARGE(NAME, KEY) int NAME(Device device, u64 *out) { return number(device, KEY, out); }
SMALL(nvmlDeviceGetPowerUsage, "power")
SMALL(nvmlDeviceGetEnforcedPowerLimit, "power_limit")
SMALL(nvmlDeviceGetPowerManagementDefaultLimit, "power_usual_limit")
SMALL(nvmlDeviceGetPcieReplayCounter, "pcie_replays")
SMALL(nvmlDeviceGetRetiredPagesPendingStatus, "retired_pending")
LARGE(nvmlDeviceGetTotalEnergyConsumption, "energy")
#ifdef OLD
LARGE(nvmlDeviceGetCurrentClocksThrottleReasons, "throttled")
#else
LARGE(nvmlDeviceGetCurrentClocksEventReasons, "throttled")
#endif

int nvmlInit_v2(void) {
    load();
    while (get(0, "hang")) pause();
    return get(0, "init") ? atoi(get(0, "init")) : 0;
}
const char *nvmlErrorString(int status) {
    return status == LOST ? "GPU is lost" : status == 18 ? "Driver/library version mismatch" : "Unknown Error";
}
int nvmlSystemGetDriverVersion(char *out, unsigned size) { return text(0, "driver", out, size); }
int nvmlDeviceGetCount_v2(unsigned *out) { *out = gpus; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *out) {
    *out = (Device)(long)(index + 1);
    return get(index + 1, "handle") ? atoi(get(index + 1, "handle")) : 0;
}
int nvmlDeviceGetUUID(Device device, char *out, unsigned size) { return text((long)device, "uuid", out, size); }
int nvmlDeviceGetName(Device device, char *out, unsigned size) { return text((long)device, "name", out, size); }
int nvmlDeviceGetPciInfo_v3(Device device, char *out) { return text((long)device, "pci", out + 36, 32); }
int nvmlDeviceGetMemoryInfo_v2(Device device, u64 *out) { /* version, total, reserved, free, used */
    return *(unsigned *)out != (40 | 2 << 24) ? 25 : number(device, "memory_total", out + 1) | number(device, "memory_used", out + 4);
}
int nvmlDeviceGetUtilizationRates(Device device, unsigned *out) { return small(device, "utilization", out); }
int nvmlDeviceGetTemperature(Device device, int sensor, unsigned *out) {
    return sensor ? 2 : small(device, "temperature", out);
}
int nvmlDeviceGetClockInfo(Device device, int clock, unsigned *out) {
    return small(device, clock == 1 ? "clock_sm" : clock == 2 ? "clock_memory" : "", out);
}
int nvmlDeviceGetTotalEccErrors(Device device, int kind, int since, u64 *out) {
    return number(device, !kind ? "ecc_corrected" : since ? "ecc_uncorrected" : "ecc_uncorrected_now", out);
}
int nvmlDeviceGetRemappedRows(Device device, unsigned *a, unsigned *b, unsigned *c, unsigned *d) {
    return small(device, "remapped_corrected", a) | small(device, "remapped_uncorrected", b) |
           small(device, "remapped_pending", c) | small(device, "remapped_failed", d);
}
int nvmlDeviceGetNvLinkState(Device device, unsigned link, unsigned *out) {
    unsigned links;
    int status = small(device, "links", &links);
    *out = link < links;
    return status ? status : link < 18 ? 0 : 2;
}
int nvmlDeviceGetNvLinkErrorCounter(Device device, unsigned link, unsigned counter, u64 *out) {
    *out = 0;
    return link || counter ? 0 : number(device, "nvlink_errors", out);
}
struct field { unsigned number, scope; long long time, latency; unsigned kind, status; u64 value; };
int nvmlDeviceGetFieldValues(Device device, int count, struct field *fields) {
    for (int i = 0; i < count; i++) {
        fields[i].kind = 1;
        fields[i].status = number(device, fields[i].number == 82 ? "memory_temperature" : fields[i].number == 230 ? "recovery" : "", &fields[i].value);
    }
    return 0;
}
