/* A disk that is full from its N-th write on, or for that one alone, below one folder, and a clock that is wrong:
 * preloaded into runs.
 *
 *   ENDURANCE_DISK   file that processes share: struct disk, below
 *   ENDURANCE_BELOW  the folder that is full
 *   ENDURANCE_CLOCK  seconds to add to the time of day
 *
 * Counted are openings that make a file, folders made, renames, writes, and what brings them to the disk (fsync). Built by tests/endurance/disk.py.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct disk {
    _Atomic int64_t count; /* so far */
    int64_t from;          /* the first that fails, 1 on; 0: none */
    int64_t last;          /* the last that fails; 0: all from there on */
    int64_t error;         /* its errno */
    int64_t log;           /* 1: name each on descriptor 2 */
};

static struct disk *disk;
static char below[4096];
static int64_t clock_offset;

__attribute__((constructor)) void endurance_arm(void) {
    const char *path = getenv("ENDURANCE_DISK"), *folder = getenv("ENDURANCE_BELOW"), *seconds = getenv("ENDURANCE_CLOCK");
    clock_offset = seconds ? atoll(seconds) : 0;
    disk = NULL;
    if (!path || !folder) return;
    snprintf(below, sizeof below, "%s", folder);
    int file = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (file < 0) return;
    void *mapped = mmap(NULL, sizeof(struct disk), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    syscall(SYS_close, file);
    if (mapped != MAP_FAILED) disk = mapped;
}

static int is_below(const char *path) {
    return strncmp(path, below, strlen(below)) == 0;
}

/* 0: it succeeds; otherwise its errno */
static int counted(const char *what, const char *path) {
    int64_t number = ++disk->count;
    if (disk->log) {
        char line[4400];
        int length = snprintf(line, sizeof line, "DISK %lld %s %s\n", (long long)number, what, path + strlen(below));
        syscall(SYS_write, 2, line, (size_t)length);
    }
    return disk->from && number >= disk->from && (!disk->last || number <= disk->last) ? (int)disk->error : 0;
}

static int fails_at(const char *what, int folder, const char *path) {
    char whole[4096];
    if (!disk || !path) return 0;
    if (path[0] != '/') {
        char link[64], at[2048];
        snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
        ssize_t length = readlink(link, at, sizeof at - 1);
        if (length < 0) return 0;
        at[length] = 0;
        snprintf(whole, sizeof whole, "%s/%s", at, path);
        path = whole;
    }
    return is_below(path) ? counted(what, path) : 0;
}

static int fails_doing(const char *what, int file) {
    char link[64], path[4096];
    if (!disk || file < 3) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path) ? counted(what, path) : 0;
}

static int fails_on(int file) { return fails_doing("write", file); }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL(error) do { int e = (error); if (e) { errno = e; return -1; } } while (0)
#define OPEN(name, ...) do { \
        mode_t mode = 0; \
        if (flags & O_CREAT) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); } \
        if (flags & O_CREAT) FAIL(fails_at("open", folder, path)); \
        return REAL(name)(__VA_ARGS__, mode); \
    } while (0)

int open(const char *path, int flags, ...) { int folder = AT_FDCWD; OPEN(open, path, flags); }
int open64(const char *path, int flags, ...) { int folder = AT_FDCWD; OPEN(open64, path, flags); }
int openat(int folder, const char *path, int flags, ...) { OPEN(openat, folder, path, flags); }
int openat64(int folder, const char *path, int flags, ...) { OPEN(openat64, folder, path, flags); }

FILE *fopen(const char *path, const char *mode) {
    int error = mode[0] == 'r' ? 0 : fails_at("open", AT_FDCWD, path);
    if (error) { errno = error; return NULL; }
    return REAL(fopen)(path, mode);
}
FILE *fopen64(const char *path, const char *mode) {
    int error = mode[0] == 'r' ? 0 : fails_at("open", AT_FDCWD, path);
    if (error) { errno = error; return NULL; }
    return REAL(fopen64)(path, mode);
}
int mkdir(const char *path, mode_t mode) { FAIL(fails_at("mkdir", AT_FDCWD, path)); return REAL(mkdir)(path, mode); }
int rename(const char *from, const char *to) { FAIL(fails_at("rename", AT_FDCWD, to)); return REAL(rename)(from, to); }
ssize_t write(int file, const void *bytes, size_t size) { FAIL(fails_on(file)); return REAL(write)(file, bytes, size); }
int fsync(int file) { FAIL(fails_doing("fsync", file)); return REAL(fsync)(file); }
int fdatasync(int file) { FAIL(fails_doing("fsync", file)); return REAL(fdatasync)(file); }
int ftruncate(int file, off_t size) { FAIL(size ? fails_doing("truncate", file) : 0); return REAL(ftruncate)(file, size); }
int ftruncate64(int file, off64_t size) { FAIL(size ? fails_doing("truncate", file) : 0); return REAL(ftruncate64)(file, size); }
ssize_t writev(int file, const struct iovec *parts, int count) { FAIL(fails_on(file)); return REAL(writev)(file, parts, count); }
ssize_t pwrite(int file, const void *bytes, size_t size, off_t at) { FAIL(fails_on(file)); return REAL(pwrite)(file, bytes, size, at); }
ssize_t pwrite64(int file, const void *bytes, size_t size, off64_t at) { FAIL(fails_on(file)); return REAL(pwrite64)(file, bytes, size, at); }
ssize_t sendfile(int to, int from, off_t *at, size_t size) { (void)from; (void)at; (void)size; FAIL(fails_on(to)); errno = ENOSYS; return -1; }
ssize_t sendfile64(int to, int from, off64_t *at, size_t size) { (void)from; (void)at; (void)size; FAIL(fails_on(to)); errno = ENOSYS; return -1; }
ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t size, unsigned int flags) {
    FAIL(fails_on(to));
    return REAL(copy_file_range)(from, a, to, b, size, flags);
}

int clock_gettime(clockid_t which, struct timespec *now) {
    int status = (int)syscall(SYS_clock_gettime, which, now);
    if (status == 0 && clock_offset && which == CLOCK_REALTIME) now->tv_sec += clock_offset;
    return status;
}
