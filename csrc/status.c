/* status.c: the last error of each thread. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"

static _Thread_local char message[512];
static _Thread_local int64_t bad_row = -1;

const char *pmx_message(void) { return message; }

int64_t pmx_bad_row(void) { return bad_row; }

pmx_status pmx_fail(pmx_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    bad_row = -1;
    return status;
}

pmx_status pmx_fail_row(pmx_status status, int64_t row, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    bad_row = row;
    return status;
}

pmx_status pmx_not_null(const char *names, const void *const *pointers, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const size_t length = strcspn(names, ",");
        if (!pointers[i]) return pmx_fail(PMX_EINVAL, "%.*s: expected a pointer, found NULL", (int)length, names);
        names += length + strspn(names + length, ", ");
    }
    return PMX_OK;
}

pmx_status pmx_check_finite(const char *name, const float *x, int64_t n_rows, int64_t n) {
    const int64_t row = pmx_first_nonfinite(x, n_rows, n);
    if (row < 0) return PMX_OK;
    return pmx_fail_row(PMX_ENONFINITE, row, PMX_NONFINITE, (long long)row, name);
}
