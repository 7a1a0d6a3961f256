// SPDX-License-Identifier: Apache-2.0 OR MIT
// stdin → stdout as a WASI preview 1 command without a C library: the least that a wasm function can do.

#include <stdint.h>

struct vector {
    uint8_t *start;
    uint32_t bytes;
};

#define WASI(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(#name)))

WASI(fd_read) uint32_t fd_read(uint32_t fd, const struct vector *vectors, uint32_t vector_count, uint32_t *done);
WASI(fd_write) uint32_t fd_write(uint32_t fd, const struct vector *vectors, uint32_t vector_count, uint32_t *done);
WASI(proc_exit) _Noreturn void proc_exit(uint32_t code);

static uint8_t buffer[64 * 1024];

void _start(void) {
    for (;;) {
        struct vector input = {buffer, sizeof buffer};
        uint32_t filled = 0;
        if (fd_read(0, &input, 1, &filled) != 0) {
            proc_exit(1);
        }
        if (filled == 0) {
            return;
        }
        for (struct vector output = {buffer, filled}; output.bytes > 0;) {
            uint32_t done = 0;
            if (fd_write(1, &output, 1, &done) != 0) {
                proc_exit(1);
            }
            output.start += done;
            output.bytes -= done;
        }
    }
}
