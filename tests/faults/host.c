/* A host with faults, preloaded before libc: a wall clock that is set, and a disk that does not keep what it is told.

   WEIR_HOST names a file of two 64-bit integers, which the test changes while the gateway runs: how many seconds the
   wall clock is off, and whether fsync fails. Monotonic clocks go on, as they do when somebody sets a clock. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *host;

__attribute__((constructor)) static void open_host(void) {
    const char *path = getenv("WEIR_HOST");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *found = mmap(NULL, 2 * sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    if (found != MAP_FAILED) host = found;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(clock, at);
    if (host && clock == CLOCK_REALTIME) at->tv_sec += host[0];
    return code;
}

int fsync(int file) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    if (host && host[1]) return errno = EIO, -1;
    return real(file);
}

int fdatasync(int file) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    if (host && host[1]) return errno = EIO, -1;
    return real(file);
}
