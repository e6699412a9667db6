/* Makes calls of the system fail, for a process that is started with LD_PRELOAD: write, fsync, rename, mkdir.
 *
 * FAULT_CALL: which one. FAULT_PATH: only of paths that hold this. FAULT_FROM, FAULT_COUNT: the first that fails, from
 * 1, and how many. FAULT_ERRNO: with what. All are read at each call, so that they may be set by the process itself.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static atomic_long calls;

static int fails(const char *call, const char *path)
{
    const char *wanted = getenv("FAULT_CALL"), *part = getenv("FAULT_PATH"), *from = getenv("FAULT_FROM");
    const char *count = getenv("FAULT_COUNT"), *number = getenv("FAULT_ERRNO");
    if (!wanted || !part || !from || !count || !number || strcmp(wanted, call) || !strstr(path, part))
        return 0;
    long now = atomic_fetch_add(&calls, 1) + 1;
    if (now < atol(from) || now >= atol(from) + atol(count))
        return 0;
    errno = atoi(number);
    return 1;
}

static int handle_fails(const char *call, int handle)
{
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return fails(call, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int handle, const void *bytes, size_t count)
{
    return handle > 2 && handle_fails("write", handle) ? -1 : REAL(write)(handle, bytes, count);
}

int fsync(int handle) { return handle_fails("fsync", handle) ? -1 : REAL(fsync)(handle); }

int rename(const char *from, const char *to) { return fails("rename", to) ? -1 : REAL(rename)(from, to); }

int mkdir(const char *path, mode_t mode) { return fails("mkdir", path) ? -1 : REAL(mkdir)(path, mode); }
