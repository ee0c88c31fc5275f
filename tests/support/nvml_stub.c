/* libnvidia-ml.so.1 over a device table (gpumodd/demo/table.py describes the file): the functions that the NVML
 * adapter reaches through pynvml, with the real names, structures and return codes. NVML_STUB_TABLE names the table;
 * each call reads it anew.
 *
 * Besides devices and holds it obeys these lines, UUID or * for any device:
 *   fault UUID FUNCTION CODE      the function returns that code
 *   fault UUID FUNCTION hang      the function does not return while the line is there
 *   fault UUID FUNCTION grow      a process list is always longer than the room offered
 *   fault UUID used|total BYTES   a lie about memory
 *   fault UUID process-used BYTES|na
 *   fault UUID uuid|name TEXT     a lie about the identity; %XX is a byte
 *   fault UUID draws PID          the process is in the graphics list, with 10 MiB
 *   fault * count N               a lie about the number of devices
 *   fault UUID temperature|slowdown|shutdown N, throttle BITS, ecc-volatile|ecc-aggregate N,
 *              retired-pending|remap-pending|remap-failed N     its health; what is not there is not supported
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    GPU_IS_LOST = 15,
    UNKNOWN = 999,
};

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_v2_t;
typedef struct {
    unsigned int pid;
    unsigned long long used;
    unsigned int gpu_instance, compute_instance;
} process_t;

enum { MAX_DEVICES = 32, MAX_HOLDS = 256, MAX_FAULTS = 32 };
static const unsigned long long MIB = 1ull << 20, NOT_AVAILABLE = ~0ull;

typedef struct { char uuid[96], name[96]; int index, lost; unsigned long long total_mib, foreign_mib; } device_t;
typedef struct {
    char uuid[96];
    int pid;
    unsigned long long started, mib, linger_ms, until_ms;
} hold_t;
typedef struct { char uuid[96], name[64], value[128]; } fault_t;

typedef struct {
    device_t devices[MAX_DEVICES];
    hold_t holds[MAX_HOLDS];
    fault_t faults[MAX_FAULTS];
    int device_count, hold_count, fault_count;
} table_t;

/* A handle is a UUID that was handed out; these outlive every re-read. */
static char handles[256][96];
static int initialised;

static unsigned long long now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return t.tv_sec * 1000ull + t.tv_nsec / 1000000;
}

/* When the process started, in ticks since boot; 0 when it is gone or a zombie. */
static unsigned long long process_started(int pid)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t size = read(fd, text, sizeof text - 1);
    close(fd);
    if (size <= 0) return 0;
    text[size] = 0;
    char *after = strrchr(text, ')'), state;
    unsigned long long started;
    if (!after || sscanf(after + 1, " %c%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s %llu", &state, &started) != 2)
        return 0;
    return state == 'Z' || state == 'X' ? 0 : started;
}

static int parse(FILE *file, table_t *t)
{
    char line[512];
    t->device_count = t->hold_count = t->fault_count = 0;
    if (!fgets(line, sizeof line, file) || strcmp(line, "gpumodd-device-table 1\n")) return 0;
    while (fgets(line, sizeof line, file)) {
        int at = 0;
        if (t->device_count < MAX_DEVICES) {
            device_t *d = &t->devices[t->device_count];
            if (sscanf(line, "device %95s %d %llu %llu %d %n", d->uuid, &d->index, &d->total_mib, &d->foreign_mib,
                       &d->lost, &at) == 5) {
                snprintf(d->name, sizeof d->name, "%.*s", (int)strcspn(line + at, "\n"), line + at);
                t->device_count++;
            }
        }
        if (t->hold_count < MAX_HOLDS) {
            hold_t *h = &t->holds[t->hold_count];
            if (sscanf(line, "hold %95s %d %llu %llu %llu %llu", h->uuid, &h->pid, &h->started, &h->mib, &h->linger_ms,
                       &h->until_ms) == 6)
                t->hold_count++;
        }
        if (t->fault_count < MAX_FAULTS) {
            fault_t *f = &t->faults[t->fault_count];
            if (sscanf(line, "fault %95s %63s %127s", f->uuid, f->name, f->value) == 3) t->fault_count++;
        }
    }
    return 1;
}

static const char *table_path(void)
{
    const char *path = getenv("NVML_STUB_TABLE");
    return path ? path : "";
}

static int load(table_t *t)
{
    FILE *file = fopen(table_path(), "re");
    if (!file) return 0;
    int good = parse(file, t);
    fclose(file);
    return good;
}

/* Write the table anew, with the end of its late release in every unnoticed dead hold: the first look counts. */
static void stamp(void)
{
    char lock_path[PATH_MAX], new_path[PATH_MAX], line[512];
    snprintf(lock_path, sizeof lock_path, "%s.lock", table_path());
    snprintf(new_path, sizeof new_path, "%s.new", table_path());
    int lock = open(lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (lock < 0) return;
    FILE *old = NULL, *new = NULL;
    if (!flock(lock, LOCK_EX | LOCK_NB) && (old = fopen(table_path(), "re")) && (new = fopen(new_path, "we"))) {
        while (fgets(line, sizeof line, old)) {
            hold_t h;
            if (sscanf(line, "hold %95s %d %llu %llu %llu %llu", h.uuid, &h.pid, &h.started, &h.mib, &h.linger_ms,
                       &h.until_ms) == 6 &&
                !h.until_ms && h.linger_ms && process_started(h.pid) != h.started)
                fprintf(new, "hold %s %d %llu %llu %llu %llu\n", h.uuid, h.pid, h.started, h.mib, h.linger_ms,
                        now_ms() + h.linger_ms);
            else
                fputs(line, new);
        }
        if (!fclose(new)) rename(new_path, table_path());
        new = NULL;
    }
    if (old) fclose(old);
    if (new) fclose(new);
    close(lock);
}

/* Keep the holds that count; says whether one must be stamped. */
static int resolve(table_t *t)
{
    int kept = 0, unnoticed = 0;
    unsigned long long now = now_ms();
    for (int i = 0; i < t->hold_count; i++) {
        hold_t h = t->holds[i];
        int alive = !h.until_ms && process_started(h.pid) == h.started;
        if (!h.until_ms && !alive && h.linger_ms) {
            unnoticed = 1;
            h.until_ms = now + h.linger_ms;
        }
        if (alive || h.until_ms > now) t->holds[kept++] = h;
    }
    t->hold_count = kept;
    return unnoticed;
}

static const char *fault(const table_t *t, const char *uuid, const char *name)
{
    for (int i = 0; i < t->fault_count; i++)
        if (!strcmp(t->faults[i].name, name) && (!strcmp(t->faults[i].uuid, "*") || !strcmp(t->faults[i].uuid, uuid)))
            return t->faults[i].value;
    return NULL;
}

/* The way into every function: reads the table, hangs or fails as it says. */
static int enter(table_t *t, const char *uuid, const char *function)
{
    for (;;) {
        if (!load(t)) return DRIVER_NOT_LOADED;
        const char *value = fault(t, uuid, function);
        if (!value || !strcmp(value, "grow")) return SUCCESS;
        if (strcmp(value, "hang")) return atoi(value);
        usleep(2000);
    }
}

static int enter_device(table_t *t, const char *uuid, const char *function, device_t **device)
{
    int code = enter(t, uuid, function);
    if (code) return code;
    if (!initialised) return UNINITIALIZED;
    for (int i = 0; i < t->device_count; i++)
        if (!strcmp(t->devices[i].uuid, uuid)) {
            *device = &t->devices[i];
            return (*device)->lost;
        }
    return GPU_IS_LOST;
}

static void copy_text(char *to, unsigned int room, const char *from)
{
    unsigned int used = 0;
    while (*from && used + 1 < room) {
        unsigned int byte;
        if (*from == '%' && sscanf(from + 1, "%2x", &byte) == 1) {
            to[used++] = (char)byte;
            from += 3;
        } else
            to[used++] = *from++;
    }
    to[used] = 0;
}

static unsigned long long used_bytes(const table_t *t, const device_t *d)
{
    unsigned long long mib = d->foreign_mib;
    for (int i = 0; i < t->hold_count; i++)
        if (!strcmp(t->holds[i].uuid, d->uuid)) mib += t->holds[i].mib;
    return mib * MIB;
}

static int by_index(const void *a, const void *b)
{
    return ((const device_t *)a)->index - ((const device_t *)b)->index;
}

int nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    table_t t;
    int code = enter(&t, "", "nvmlInitWithFlags");
    initialised = code == SUCCESS;
    return code;
}

int nvmlShutdown(void)
{
    int was = initialised;
    initialised = 0;
    return was ? SUCCESS : UNINITIALIZED;
}

const char *nvmlErrorString(int code)
{
    return code == SUCCESS ? "Success" : "an error of the stub";
}

int nvmlDeviceGetCount_v2(unsigned int *count)
{
    table_t t;
    int code = enter(&t, "", "nvmlDeviceGetCount_v2");
    if (code) return code;
    if (!initialised) return UNINITIALIZED;
    const char *lie = fault(&t, "", "count");
    *count = lie ? (unsigned int)strtoul(lie, NULL, 10) : (unsigned int)t.device_count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, char **handle)
{
    table_t t;
    int code = enter(&t, "", "nvmlDeviceGetHandleByIndex_v2");
    if (code) return code;
    if (!initialised) return UNINITIALIZED;
    qsort(t.devices, t.device_count, sizeof *t.devices, by_index);
    if (index >= (unsigned int)t.device_count) return INVALID_ARGUMENT;
    device_t *device = &t.devices[index];
    if (device->lost) return device->lost;
    for (int i = 0; i < 256; i++) {
        if (!handles[i][0]) memcpy(handles[i], device->uuid, sizeof handles[i]);
        if (!strcmp(handles[i], device->uuid)) {
            *handle = handles[i];
            return SUCCESS;
        }
    }
    return UNKNOWN;
}

int nvmlDeviceGetUUID(const char *handle, char *uuid, unsigned int room)
{
    table_t t;
    device_t *device;
    int code = enter_device(&t, handle, "nvmlDeviceGetUUID", &device);
    if (code) return code;
    const char *lie = fault(&t, handle, "uuid");
    copy_text(uuid, room, lie ? lie : device->uuid);
    return SUCCESS;
}

int nvmlDeviceGetName(const char *handle, char *name, unsigned int room)
{
    table_t t;
    device_t *device;
    int code = enter_device(&t, handle, "nvmlDeviceGetName", &device);
    if (code) return code;
    const char *lie = fault(&t, handle, "name");
    copy_text(name, room, lie ? lie : device->name);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(const char *handle, memory_t *memory)
{
    table_t t;
    device_t *device;
    int code = enter_device(&t, handle, "nvmlDeviceGetMemoryInfo", &device);
    if (code) return code;
    if (resolve(&t)) stamp();
    const char *total = fault(&t, handle, "total"), *used = fault(&t, handle, "used");
    memory->total = total ? strtoull(total, NULL, 10) : device->total_mib * MIB;
    memory->used = used ? strtoull(used, NULL, 10) : used_bytes(&t, device);
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(const char *handle, unsigned int *count, process_t *processes)
{
    table_t t;
    device_t *device;
    int code = enter_device(&t, handle, "nvmlDeviceGetComputeRunningProcesses_v3", &device);
    if (code) return code;
    if (resolve(&t)) stamp();
    const char *lie = fault(&t, handle, "process-used");
    const char *grow = fault(&t, handle, "nvmlDeviceGetComputeRunningProcesses_v3");
    unsigned int room = *count, found = 0;
    for (int i = 0; i < t.hold_count; i++) {
        hold_t *h = &t.holds[i];
        if (h->until_ms || strcmp(h->uuid, device->uuid)) continue;
        if (found < room) {
            unsigned long long used = h->mib * MIB;
            if (lie) used = strcmp(lie, "na") ? strtoull(lie, NULL, 10) : NOT_AVAILABLE;
            processes[found] = (process_t){(unsigned int)h->pid, used, ~0u, ~0u};
        }
        found++;
    }
    *count = found;
    return found > room || (grow && found) ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(const char *handle, unsigned int *count, process_t *processes)
{
    table_t t;
    device_t *device;
    int code = enter_device(&t, handle, "nvmlDeviceGetGraphicsRunningProcesses_v3", &device);
    if (code) return code;
    const char *draws = fault(&t, handle, "draws");
    unsigned int room = *count;
    *count = draws ? 1 : 0;
    if (draws && !room) return INSUFFICIENT_SIZE;
    if (draws) processes[0] = (process_t){(unsigned int)strtoul(draws, NULL, 10), 10 * MIB, ~0u, ~0u};
    return SUCCESS;
}

/* One figure of a device's health, as far as the table has it. */
static int figure(const char *handle, const char *function, const char *name, unsigned long long *value)
{
    table_t t;
    device_t *device;
    int code = enter_device(&t, handle, function, &device);
    if (code) return code;
    const char *text = fault(&t, handle, name);
    if (!text) return NOT_SUPPORTED;
    *value = strtoull(text, NULL, 0);
    return SUCCESS;
}

int nvmlDeviceGetTemperature(const char *handle, int sensor, unsigned int *celsius)
{
    unsigned long long value = 0;
    (void)sensor;
    int code = figure(handle, "nvmlDeviceGetTemperature", "temperature", &value);
    *celsius = (unsigned int)value;
    return code;
}

int nvmlDeviceGetTemperatureThreshold(const char *handle, int which, unsigned int *celsius)
{
    unsigned long long value = 0;
    const char *name = which == 0 ? "shutdown" : which == 1 ? "slowdown" : "no such threshold";
    int code = figure(handle, "nvmlDeviceGetTemperatureThreshold", name, &value);
    *celsius = (unsigned int)value;
    return code;
}

/* The name of drivers before 535; the newer nvmlDeviceGetCurrentClocksEventReasons is missing on purpose. */
int nvmlDeviceGetCurrentClocksThrottleReasons(const char *handle, unsigned long long *bits)
{
    return figure(handle, "nvmlDeviceGetCurrentClocksThrottleReasons", "throttle", bits);
}

int nvmlDeviceGetTotalEccErrors(const char *handle, int type, int counter, unsigned long long *count)
{
    if (type != 1) return INVALID_ARGUMENT; /* uncorrected */
    return figure(handle, "nvmlDeviceGetTotalEccErrors", counter ? "ecc-aggregate" : "ecc-volatile", count);
}

int nvmlDeviceGetRetiredPagesPendingStatus(const char *handle, int *pending)
{
    unsigned long long value = 0;
    int code = figure(handle, "nvmlDeviceGetRetiredPagesPendingStatus", "retired-pending", &value);
    *pending = (int)value;
    return code;
}

int nvmlDeviceGetRemappedRows(const char *handle, unsigned int *corrected, unsigned int *uncorrected,
                              unsigned int *pending, unsigned int *failed)
{
    unsigned long long is_pending = 0, has_failed = 0;
    int first = figure(handle, "nvmlDeviceGetRemappedRows", "remap-pending", &is_pending);
    int second = figure(handle, "nvmlDeviceGetRemappedRows", "remap-failed", &has_failed);
    *corrected = *uncorrected = 0;
    *pending = (unsigned int)is_pending;
    *failed = (unsigned int)has_failed;
    return first && second ? first : SUCCESS;
}

/* For the test that compares these with pynvml's. nvmlDeviceGetMPSComputeRunningProcesses is missing on purpose. */
size_t nvml_stub_sizes(int which)
{
    switch (which) {
    case 0: return sizeof(memory_t);
    case 1: return sizeof(memory_v2_t);
    default: return sizeof(process_t);
    }
}
