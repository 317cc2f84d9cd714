/* cpu.c: what this machine has: instruction sets that the CPU and the operating system both support, and threads that make sense. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#if defined(__x86_64__)
#include <cpuid.h>

typedef struct {
    unsigned leaf1_ecx, leaf7_ebx, leaf7_ecx, leaf7_1_eax, xcr0;
} cpu_features;

static cpu_features read_features(void) {
    cpu_features f = {0};
    unsigned eax, ebx, ecx, edx, high;
    if (!__get_cpuid(1, &eax, &ebx, &f.leaf1_ecx, &edx)) return f;
    if (__get_cpuid_count(7, 0, &eax, &f.leaf7_ebx, &f.leaf7_ecx, &edx) && eax >= 1)
        __get_cpuid_count(7, 1, &f.leaf7_1_eax, &ebx, &ecx, &edx);
    if (f.leaf1_ecx & 1u << 27) /* OSXSAVE: XCR0 says which registers the operating system saves */
        __asm__ volatile("xgetbv" : "=a"(f.xcr0), "=d"(high) : "c"(0));
    return f;
}

static int all_set(unsigned value, unsigned bits) { return (value & bits) == bits; }

int pmx_cpu_avx2(void) {
    const cpu_features f = read_features();
    return all_set(f.xcr0, 0x6) && all_set(f.leaf1_ecx, 1u << 12 | 1u << 28 | 1u << 29) && /* FMA, AVX, F16C */
           all_set(f.leaf7_ebx, 1u << 5);                                                  /* AVX2 */
}

int pmx_cpu_avxvnni(void) { return pmx_cpu_avx2() && all_set(read_features().leaf7_1_eax, 1u << 4); }

int pmx_cpu_avx512vnni(void) {
    const cpu_features f = read_features();
    const unsigned f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, vnni = 1u << 11;
    return pmx_cpu_avx2() && all_set(f.xcr0, 0xe6) && all_set(f.leaf7_ebx, f_dq_bw_vl) && all_set(f.leaf7_ecx, vnni);
}
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

/* ARMv8.2's dot products; the kernel's HWCAP_ASIMDDP, which older headers lack. f16 conversion and fma are in every ARMv8. */
int pmx_cpu_neon(void) { return (getauxval(AT_HWCAP) & 1ul << 20) != 0; }

/* 8-bit matrix products: HWCAP2_I8MM. */
int pmx_cpu_neon_i8mm(void) { return pmx_cpu_neon() && (getauxval(AT_HWCAP2) & 1ul << 13) != 0; }
#elif defined(__aarch64__) && defined(__APPLE__)
static int has_feature(const char *name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value != 0;
}

int pmx_cpu_neon(void) { return has_feature("hw.optional.arm.FEAT_DotProd"); }

int pmx_cpu_neon_i8mm(void) { return pmx_cpu_neon() && has_feature("hw.optional.arm.FEAT_I8MM"); }
#endif

#if defined(__linux__)
/* CPUs of the affinity mask that are distinct physical cores: two hyperthreads share the units that kernels saturate. */
static int32_t linux_cores(void) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) != 0) return (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
    cpu_set_t seen; /* first sibling of each core counted so far */
    CPU_ZERO(&seen);
    int32_t n = 0;
    for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &set)) continue;
        char path[96];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%zu/topology/thread_siblings_list", cpu);
        size_t first = cpu;
        FILE *file = fopen(path, "r");
        if (file) {
            if (fscanf(file, "%zu", &first) != 1 || first >= CPU_SETSIZE) first = cpu;
            fclose(file);
        }
        if (!CPU_ISSET(first, &seen)) {
            CPU_SET(first, &seen);
            n++;
        }
    }
    return n;
}

enum { NO_QUOTA = 256, PATH_BYTES = 4096 };

/* quota / period in whole CPUs, rounded up. */
static int32_t whole_cpus(long long quota, long long period) {
    if (quota <= 0 || period <= 0 || quota / period >= NO_QUOTA) return NO_QUOTA;
    return (int32_t)((quota + period - 1) / period);
}

/* What cpu.max of a cgroup folder says: "max 100000" or "200000 100000". */
static int32_t group_quota(const char *folder) {
    char path[PATH_BYTES + 16], text[32];
    long long period = 0;
    snprintf(path, sizeof path, "%s/cpu.max", folder);
    FILE *file = fopen(path, "r");
    if (!file) return NO_QUOTA;
    const int limited = fscanf(file, "%31s %lld", text, &period) == 2 && strcmp(text, "max") != 0;
    fclose(file);
    return limited ? whole_cpus(atoll(text), period) : NO_QUOTA;
}

static long long read_number(const char *path) {
    long long value = -1;
    FILE *file = fopen(path, "r");
    if (!file) return -1;
    if (fscanf(file, "%lld", &value) != 1) value = -1;
    fclose(file);
    return value;
}

/* The least CPU quota of this process's cgroup and those around it (version 2), or the mount's own (version 1). */
static int32_t linux_quota(void) {
    static const char mount[] = "/sys/fs/cgroup";
    int32_t least = whole_cpus(read_number("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), read_number("/sys/fs/cgroup/cpu/cpu.cfs_period_us"));
    char folder[PATH_BYTES] = "/sys/fs/cgroup", line[PATH_BYTES - sizeof mount];
    FILE *file = fopen("/proc/self/cgroup", "r");
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line, "0::", 3) == 0) snprintf(folder, sizeof folder, "%s%s", mount, line + 3);
    }
    if (file) fclose(file);
    for (size_t length = strlen(folder); length >= strlen(mount);) {
        const int32_t quota = group_quota(folder);
        if (quota < least) least = quota;
        while (length > 0 && folder[length - 1] != '/') length--;
        folder[length > 0 ? --length : 0] = 0;
    }
    return least;
}
#endif

int32_t pmx_default_threads(void) {
    int32_t n;
#if defined(__linux__)
    const int32_t quota = linux_quota();
    n = linux_cores();
    if (n > quota) n = quota;
#elif defined(__APPLE__)
    /* Performance cores only: the slower ones would be waited for at every barrier. */
    int cores = 0;
    size_t size = sizeof cores;
    if (sysctlbyname("hw.perflevel0.physicalcpu", &cores, &size, NULL, 0) != 0 &&
        sysctlbyname("hw.physicalcpu", &cores, &size, NULL, 0) != 0)
        cores = 1;
    n = cores;
#else
    n = (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
#endif
    if (n < 1) return 1;
    return n < 256 ? n : 256;
}
