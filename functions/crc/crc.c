// SPDX-License-Identifier: Apache-2.0 OR MIT
// CRC-32 (as in zip, PNG and Ethernet) of stdin, printed as eight lower-case hex digits and a line feed.
// A WASI preview 1 command; ../build-wasm.sh builds it.

#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

enum {
    SLICES = 4,
    BUFFER_BYTES = 16 * 1024, // a multiple of SLICES; larger ones were not faster
    DIGITS = 8,
};

// The polynomial 0x04C11DB7 with its bits reversed, because the least significant bit goes first.
static const uint32_t POLYNOMIAL = 0xEDB88320;

// table[s][b] is what byte b does to the sum when s bytes follow it in the same step.
static uint32_t table[SLICES][256];
static uint8_t buffer[BUFFER_BYTES];

static void fill_table(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t sum = byte;
        for (int bit = 0; bit < 8; bit++) {
            sum = sum >> 1 ^ (sum & 1 ? POLYNOMIAL : 0);
        }
        table[0][byte] = sum;
    }
    for (int slice = 1; slice < SLICES; slice++) {
        for (int byte = 0; byte < 256; byte++) {
            uint32_t before = table[slice - 1][byte];
            table[slice][byte] = before >> 8 ^ table[0][before & 0xFF];
        }
    }
}

static uint32_t update(uint32_t sum, const uint8_t *bytes, size_t count) {
    for (; count >= SLICES; bytes += SLICES, count -= SLICES) {
        sum ^= (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
        sum = table[3][sum & 0xFF] ^ table[2][sum >> 8 & 0xFF] ^ table[1][sum >> 16 & 0xFF] ^ table[0][sum >> 24];
    }
    for (; count > 0; bytes++, count--) {
        sum = sum >> 8 ^ table[0][(sum ^ *bytes) & 0xFF];
    }
    return sum;
}

int main(void) {
    fill_table();
    uint32_t sum = 0xFFFFFFFF;
    ssize_t count;
    while ((count = read(STDIN_FILENO, buffer, sizeof buffer)) > 0) {
        sum = update(sum, buffer, (size_t)count);
    }
    if (count < 0) {
        return 1;
    }
    sum = ~sum;

    char line[DIGITS + 1];
    for (int digit = 0; digit < DIGITS; digit++) {
        line[digit] = "0123456789abcdef"[sum >> (4 * (DIGITS - 1 - digit)) & 0xF];
    }
    line[DIGITS] = '\n';
    return write(STDOUT_FILENO, line, sizeof line) == (ssize_t)sizeof line ? 0 : 1;
}
