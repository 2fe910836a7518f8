/* LD_PRELOAD: below one folder, the n-th call that changes the file system fails, or kills.
 *
 * As SQLite tests itself (https://www.sqlite.org/testing.html, "I/O error testing"). Nothing is
 * counted before faults_arm() is called (by ctypes, in a forked child). Not seen: mmap, and what
 * glibc's stdio writes by itself (its fopen is seen, its fwrite is not).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

struct report { long count; char what[1024]; };
static struct report *report;
static char prefix[PATH_MAX];
static long nth;
static int error, after_too, kills;

/* `kills`: -1 fails with `error`; else SIGKILL, after this share (percent) of a write was made. */
int faults_arm(const char *below, const char *report_path, long n, int err, int after, int kill_at) {
  int fd = open(report_path, O_RDWR | O_CREAT, 0666);
  if (fd < 0 || ftruncate(fd, sizeof(struct report)) < 0) return -1;
  report = mmap(NULL, sizeof(struct report), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (report == MAP_FAILED) { report = NULL; return -1; }
  nth = n; error = err; after_too = after; kills = kill_at;
  strncpy(prefix, below, sizeof prefix - 1);
  return 0;
}

static int below(int dirfd, const char *path, char *full) {
  char folder[PATH_MAX] = "", link[64];
  if (path == NULL || path[0] != '/') {
    if (dirfd == AT_FDCWD) strcpy(link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
    ssize_t n = readlink(link, folder, sizeof folder - 1);
    if (n < 0) return 0;
    folder[n] = 0;
  }
  const char *slash = path && path[0] != '/' ? "/" : "";
  /* Longer paths than PATH_MAX are none. */
  (void)!snprintf(full, PATH_MAX, "%s%s%s", folder, slash, path ? path : "");
  return strncmp(full, prefix, strlen(prefix)) == 0;
}

/* Count one call; returns whether it is to fail. `data` is what a write would write. */
static int fails(const char *call, int dirfd, const char *path, const void *data, size_t size) {
  if (report == NULL || prefix[0] == 0) return 0;
  int before = errno;
  char full[PATH_MAX];
  if (!below(dirfd, path, full)) { errno = before; return 0; }
  long at = __sync_add_and_fetch(&report->count, 1);
  errno = before;
  if (at != nth && !(after_too && nth > 0 && at > nth)) return 0;
  /* Removing needs no space. */
  if (kills < 0 && error == ENOSPC && strcmp(call, "unlink") == 0) return 0;
  if (at == nth) snprintf(report->what, sizeof report->what, "%s %.900s", call, full);
  if (kills >= 0) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    if (data != NULL && size > 1 && real(dirfd, data, size * kills / 100) < 0) errno = 0;
    kill(getpid(), SIGKILL);
    pause();
  }
  errno = error;
  return 1;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define CHANGES(flags) (((flags) & O_ACCMODE) != O_RDONLY || ((flags) & (O_CREAT | O_TRUNC)))
#define MODE(flags) \
  mode_t mode = 0; \
  if ((flags) & (O_CREAT | O_TMPFILE)) { \
    va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); \
  }

#define OPEN(name) int name(const char *path, int flags, ...) { \
  MODE(flags) REAL(name); \
  if (CHANGES(flags) && fails("open", AT_FDCWD, path, NULL, 0)) return -1; \
  return real(path, flags, mode); }
OPEN(open) OPEN(open64)
#define OPENAT(name) int name(int dir, const char *path, int flags, ...) { \
  MODE(flags) REAL(name); \
  if (CHANGES(flags) && fails("open", dir, path, NULL, 0)) return -1; \
  return real(dir, path, flags, mode); }
OPENAT(openat) OPENAT(openat64)
#define FOPEN(name) FILE *name(const char *path, const char *mode) { \
  REAL(name); \
  if (strpbrk(mode, "wa+") && fails("fopen", AT_FDCWD, path, NULL, 0)) return NULL; \
  return real(path, mode); }
FOPEN(fopen) FOPEN(fopen64)

/* Calls of a descriptor: its path is asked of /proc. */
#define OF_FD(type, name, call, parameters, data, size, ...) type name parameters { \
  REAL(name); \
  if (fails(call, fd, NULL, data, size)) return -1; \
  return real(__VA_ARGS__); }
OF_FD(ssize_t, write, "write", (int fd, const void *b, size_t n), b, n, fd, b, n)
OF_FD(ssize_t, pwrite, "write", (int fd, const void *b, size_t n, off_t o), NULL, 0, fd, b, n, o)
OF_FD(ssize_t, pwrite64, "write", (int fd, const void *b, size_t n, off64_t o), NULL, 0, fd, b, n, o)
OF_FD(ssize_t, writev, "write", (int fd, const struct iovec *v, int n), NULL, 0, fd, v, n)
OF_FD(int, fsync, "fsync", (int fd), NULL, 0, fd)
OF_FD(int, fdatasync, "fsync", (int fd), NULL, 0, fd)
OF_FD(int, ftruncate, "ftruncate", (int fd, off_t n), NULL, 0, fd, n)
OF_FD(int, ftruncate64, "ftruncate", (int fd, off64_t n), NULL, 0, fd, n)
OF_FD(ssize_t, copy_file_range,
      "write", (int in, off64_t *i, int fd, off64_t *o, size_t n, unsigned f), NULL, 0, in, i, fd, o, n, f)
ssize_t sendfile(int, int, off_t *, size_t);
ssize_t sendfile64(int, int, off64_t *, size_t);
OF_FD(ssize_t, sendfile, "write", (int fd, int in, off_t *o, size_t n), NULL, 0, fd, in, o, n)
OF_FD(ssize_t, sendfile64, "write", (int fd, int in, off64_t *o, size_t n), NULL, 0, fd, in, o, n)

/* Calls of a path. */
#define OF_PATH(name, call, parameters, dir, path, ...) int name parameters { \
  REAL(name); \
  if (fails(call, dir, path, NULL, 0)) return -1; \
  return real(__VA_ARGS__); }
OF_PATH(rename, "rename", (const char *a, const char *b), AT_FDCWD, b, a, b)
OF_PATH(renameat, "rename", (int x, const char *a, int y, const char *b), y, b, x, a, y, b)
OF_PATH(renameat2, "rename",
        (int x, const char *a, int y, const char *b, unsigned f), y, b, x, a, y, b, f)
OF_PATH(link, "link", (const char *a, const char *b), AT_FDCWD, b, a, b)
OF_PATH(mkdir, "mkdir", (const char *p, mode_t m), AT_FDCWD, p, p, m)
OF_PATH(mkdirat, "mkdir", (int d, const char *p, mode_t m), d, p, d, p, m)
OF_PATH(unlink, "unlink", (const char *p), AT_FDCWD, p, p)
OF_PATH(unlinkat, "unlink", (int d, const char *p, int f), d, p, d, p, f)
OF_PATH(rmdir, "unlink", (const char *p), AT_FDCWD, p, p)
