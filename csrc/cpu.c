/* cpu.c: the instruction sets that the CPU and the operating system both support. */
#include "internal.h"

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

int pmx_cpu_avx512vbmi(void) { return pmx_cpu_avx512vnni() && all_set(read_features().leaf7_ecx, 1u << 1); }
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

/* ARMv8.2's dot products; the kernel's HWCAP_ASIMDDP, which older headers lack. f16 conversion and
 * fma are in every ARMv8. */
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
