// SPDX-License-Identifier: Apache-2.0 OR MIT
// stdin → stdout without a C library: the least that a native function can do. Compiled by the benchmark.

static long call(long number, long a, long b, long c) {
#if defined(__x86_64__)
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
    return x0;
#endif
}

#if defined(__x86_64__)
enum { READ = 0, WRITE = 1, EXIT = 231 };
#elif defined(__aarch64__)
enum { READ = 63, WRITE = 64, EXIT = 94 };
#endif

static char buffer[64 * 1024];

void _start(void) {
    for (;;) {
        long filled = call(READ, 0, (long)buffer, sizeof buffer);
        if (filled <= 0) {
            call(EXIT, filled < 0, 0, 0);
        }
        for (long done = 0; done < filled;) {
            long wrote = call(WRITE, 1, (long)(buffer + done), filled - done);
            if (wrote < 0) {
                call(EXIT, 1, 0, 0);
            }
            done += wrote;
        }
    }
}
