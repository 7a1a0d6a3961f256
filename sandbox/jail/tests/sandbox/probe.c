/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* A function for the tests: does what its first argument says. Built statically, so that it runs on any base. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int answer(const char *what, long result) {
    printf("%s: %s\n", what, result < 0 ? strerrorname_np(errno) : "ALLOWED");
    return 0;
}

static int cat(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) { printf("%s: %s\n", path, strerrorname_np(errno)); return 1; }
    int c;
    while ((c = fgetc(file)) != EOF) putchar(c);
    fclose(file);
    return 0;
}

static int try_write(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    answer(path, fd);
    if (0 <= fd) close(fd);
    return 0;
}

static int list(const char *path) {
    DIR *dir = opendir(path);
    if (!dir) { printf("%s: %s\n", path, strerrorname_np(errno)); return 1; }
    struct dirent *entry;
    while ((entry = readdir(dir))) if (entry->d_name[0] != '.') printf("%s\n", entry->d_name);
    return 0;
}

static int walls(void) {
    answer("setuid", setuid(0));
    answer("mount", mount("proc", "/scratch/tmp", "proc", 0, 0));
    answer("umount", umount2("/proc", MNT_DETACH));
    answer("chroot", chroot("/scratch/tmp"));
    answer("unshare-user", unshare(CLONE_NEWUSER));
    answer("unshare-net", unshare(CLONE_NEWNET));
    answer("clone-user", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
    answer("clone3", syscall(SYS_clone3, 0, 0));
    answer("ptrace", syscall(SYS_ptrace, 16 /* ATTACH */, 1, 0, 0));
    answer("bpf", syscall(SYS_bpf, 0, 0, 0));
    answer("keyctl", syscall(SYS_keyctl, 0, 0));
    answer("io_uring", syscall(SYS_io_uring_setup, 1, 0));
    answer("inet", socket(AF_INET, SOCK_STREAM, 0));
    answer("alg", socket(38, SOCK_SEQPACKET, 0));
    answer("mknod", mknod("/scratch/tmp/null", S_IFCHR | 0666, 0x103));
    answer("rlimit-init", prlimit(1, RLIMIT_NOFILE, &(struct rlimit){0, 0}, 0));
    cpu_set_t set; CPU_ZERO(&set); CPU_SET(0, &set);
    answer("affinity-init", sched_setaffinity(1, sizeof set, &set));
    answer("nice-init", setpriority(PRIO_PROCESS, 1, 19));
    answer("realtime", sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){1}));
    answer("raise-rlimit", setrlimit(RLIMIT_NOFILE, &(struct rlimit){4096, 4096}));
    answer("unknown", syscall(999));
    try_write("/intruder");
    try_write("/function/intruder");
    try_write("/dev/intruder");
    try_write("/proc/self/oom_score_adj");
    try_write("/proc/self/uid_map");
    try_write("/proc/sys/kernel/core_pattern");
    try_write("/scratch/intruder");
    answer("init-mem", open("/proc/1/mem", O_RDONLY));
    answer("init-exe", readlink("/proc/1/exe", (char[64]){0}, 64));
    answer("signal-init", kill(1, SIGKILL));
    return 0;
}

static int about(void) {
    cat("/proc/self/status");
    printf("fds:");
    for (int fd = 0; fd < 1024; fd++) if (fcntl(fd, F_GETFD) != -1) printf(" %d", fd);
    char cwd[256], host[64];
    printf("\ncwd: %s\n", getcwd(cwd, sizeof cwd));
    gethostname(host, sizeof host);
    printf("host: %s\npid: %d\nuid: %d\n", host, getpid(), getuid());
    struct timespec up;
    clock_gettime(CLOCK_BOOTTIME, &up);
    printf("uptime: %ld\n", (long)up.tv_sec);
    printf("nice: %d\nscheduler: %d\n", getpriority(PRIO_PROCESS, 0), sched_getscheduler(0));
    struct sigaction pipe_action;
    sigaction(SIGPIPE, 0, &pipe_action);
    printf("sigpipe: %s\n", pipe_action.sa_handler == SIG_DFL ? "default" : "other");
    return 0;
}

static int eat(size_t megabytes) {
    for (size_t i = 0; i < megabytes; i++) {
        char *page = malloc(1 << 20);
        if (!page) return 2;
        memset(page, 1, 1 << 20);
    }
    return 0;
}

static int leave_behind(int count) {
    for (int i = 0; i < count; i++) {
        if (fork() == 0) { setsid(); if (fork() == 0) { signal(SIGTERM, SIG_IGN); for (;;) pause(); } _exit(0); }
    }
    while (0 < wait(0)) {}
    printf("left %d\n", count);
    return 0;
}

/* Forks until it is refused; every child waits to be killed. */
static int count_forks(void) {
    int count = 0;
    for (;;) {
        pid_t child = fork();
        if (child < 0) break;
        if (child == 0) for (;;) pause();
        count++;
    }
    printf("%d %s\n", count, strerrorname_np(errno));
    return 0;
}

/* Stands in for a resident program: says one word on the control socket, and ends with it. */
static int resident(void) {
    char word[16];
    if (send(3, "booted", 6, 0) != 6) return 3;
    return recv(3, word, sizeof word, 0) == 0 ? 0 : 4;
}

/* Leaves a process in a way that a parent might not see by an ordinary wait. */
static int leave_hidden(const char *how) {
    if (!strcmp(how, "sibling") && !syscall(SYS_clone, CLONE_PARENT, 0, 0, 0, 0)) for (;;) pause();
    if (!strcmp(how, "silent") && !syscall(SYS_clone, 0, 0, 0, 0, 0)) for (;;) pause();
    if (!strcmp(how, "adopted") && !fork()) {
        prctl(PR_SET_CHILD_SUBREAPER, 1);
        if (!fork()) { if (!fork()) for (;;) pause(); _exit(0); }
        for (;;) pause();
    }
    if (!strcmp(how, "stopped") && !fork()) { setsid(); if (!fork()) raise(SIGSTOP); for (;;) pause(); }
    if (!strcmp(how, "dead") && !fork()) _exit(0);
    puts("hidden");
    return 0;
}

/* Takes both kinds of lock and says whether somebody else's was in the way; holds them until stdin ends. */
static int lock(const char *path) {
    int fd = open(path, O_RDONLY);
    answer("flock", flock(fd, LOCK_EX | LOCK_NB));
    struct flock seen = {.l_type = F_WRLCK};
    answer("getlk", fcntl(fd, F_GETLK, &seen));
    printf("others: %s\n", seen.l_type == F_UNLCK ? "none" : "LOCKED");
    answer("setlk", fcntl(fd, F_SETLK, &(struct flock){.l_type = F_RDLCK}));
    answer("again", flock(open(path, O_RDONLY), LOCK_EX | LOCK_NB));
    puts("held");
    return (int)read(0, &(char){0}, 1);
}

/* Fills one file until there is no room. */
static int flood(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    char block[4096] = {1};
    long count = 0;
    while (write(fd, block, sizeof block) == sizeof block) count++;
    printf("%ld %s\n", count, strerrorname_np(errno));
    return 0;
}

/* Makes empty files until there is no room. */
static int many(const char *directory) {
    char path[256];
    for (long count = 0;; count++) {
        snprintf(path, sizeof path, "%s/%ld", directory, count);
        if (open(path, O_WRONLY | O_CREAT, 0600) < 0) { printf("%ld %s\n", count, strerrorname_np(errno)); return 0; }
        close(3);
    }
}

static long nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

/* How long a call takes that is allowed, and one that is refused and told of, on average of so many. */
static int refused(int rounds) {
    long begun = nanoseconds();
    for (int i = 0; i < rounds; i++) syscall(SYS_getppid);
    long between = nanoseconds();
    int wrong = 0;
    for (int i = 0; i < rounds; i++) wrong += !(syscall(SYS_bpf, i, 2, 3, 4, 5, 6) == -1 && errno == EPERM);
    long ended = nanoseconds();
    printf("allowed %ld ns, refused %ld ns, wrong %d\n", (between - begun) / rounds, (ended - between) / rounds, wrong);
    return 0;
}

/* Ways to start another process, and one to start a thread, which is left to end at once. */
static int alone(void) {
    answer("fork", syscall(SYS_fork));
    answer("clone", syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
    answer("spawn", syscall(SYS_clone, CLONE_VM | CLONE_VFORK | SIGCHLD, 0, 0, 0, 0));
    answer("launch", syscall(SYS_clone, CLONE_VM | CLONE_VFORK | CLONE_UNTRACED | SIGCHLD, 0, 0, 0, 0));
    answer("memfd", syscall(SYS_memfd_create, "x", 0));
    answer("mkdir", mkdir("/tmp/d", 0700));
    answer("unix", socket(AF_UNIX, SOCK_STREAM, 0));
    answer("create", open("/tmp/f", O_CREAT | O_WRONLY, 0600));
    return 0;
}

/* Tries to put something else at a place. */
static int take(const char *place) {
    answer("rename", rename(place, "/moved"));
    answer("rmdir", rmdir(place));
    answer("exchange", renameat2(AT_FDCWD, place, AT_FDCWD, "/tmp", RENAME_EXCHANGE));
    answer("chmod", chmod(place, 0777));
    return 0;
}

/* Copies itself to a path with every set-id bit, and runs the copy. */
static int set_user_id(const char *path) {
    char block[65536];
    ssize_t n;
    int from = open("/proc/self/exe", O_RDONLY), to = open(path, O_WRONLY | O_CREAT, 0700);
    while (0 < (n = read(from, block, sizeof block))) write(to, block, n);
    answer("chmod", fchmod(to, 06777));
    close(to);
    execl(path, path, "identity", NULL);
    return answer("exec", -1);
}

static int identity(void) {
    printf("uid: %d %d\n", getuid(), geteuid());
    return cat("/proc/self/status");
}

int main(int argc, char **argv) {
    const char *what = argc < 2 ? "echo" : argv[1];
    setvbuf(stdout, 0, _IONBF, 0);
    if (!strcmp(what, "echo")) { char buffer[65536]; ssize_t n; while (0 < (n = read(0, buffer, sizeof buffer))) write(1, buffer, n); return 0; }
    if (!strcmp(what, "walls")) return walls();
    if (!strcmp(what, "about")) return about();
    if (!strcmp(what, "terminal")) { char settings[64]; return answer("terminal", ioctl(open("/dev/zero", O_RDONLY), 0x5401 /* TCGETS */, settings)); }
    if (!strcmp(what, "cat")) return cat(argv[2]);
    if (!strcmp(what, "list")) return list(argv[2]);
    if (!strcmp(what, "write")) return try_write(argv[2]);
    if (!strcmp(what, "flood")) return flood(argv[2]);
    if (!strcmp(what, "many")) return many(argv[2]);
    if (!strcmp(what, "take")) return take(argv[2]);
    if (!strcmp(what, "setuid")) return set_user_id(argv[2]);
    if (!strcmp(what, "identity")) return identity();
    if (!strcmp(what, "refused")) return refused(atoi(argv[2]));
    if (!strcmp(what, "refuse")) for (;;) syscall(SYS_bpf, 1, 2, 3, 4, 5, 6);
    if (!strcmp(what, "alone")) return alone();
    if (!strcmp(what, "call")) return answer(argv[2], syscall(atol(argv[2]), -1L, -1L, -1L, -1L, -1L, -1L));
    if (!strcmp(what, "lock")) return lock(argv[2]);
    if (!strcmp(what, "env")) { for (char **v = environ; *v; v++) puts(*v); return 0; }
    if (!strcmp(what, "exit")) return atoi(argv[2]);
    if (!strcmp(what, "kill")) { kill(getpid(), atoi(argv[2])); pause(); }
    if (!strcmp(what, "eat")) return eat(atoi(argv[2]));
    if (!strcmp(what, "leave")) return leave_behind(atoi(argv[2]));
    if (!strcmp(what, "hide")) return leave_hidden(argv[2]);
    if (!strcmp(what, "fill")) { int fd = open("/tmp/filled", O_WRONLY | O_CREAT, 0600); char block[4096] = {1}; long n = 0; while (write(fd, block, sizeof block) == sizeof block) n++; printf("%ld %s\n", n, strerrorname_np(errno)); return 0; }
    if (!strcmp(what, "forks")) return count_forks();
    if (!strcmp(what, "resident-argument")) return resident();
    if (!strcmp(what, "spin")) for (;;) {}
    if (!strcmp(what, "lower")) { nice(10); umask(0777); signal(SIGPIPE, SIG_IGN); setrlimit(RLIMIT_NOFILE, &(struct rlimit){16, 16}); puts("lowered"); return 0; }
    if (!strcmp(what, "pause")) { puts("paused"); for (;;) pause(); }
    return 64;
}
