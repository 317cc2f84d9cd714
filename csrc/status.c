/* status.c: the last error of each thread. */
#include <stdarg.h>
#include <stdio.h>

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
