#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Builds sha256 with musl where its target is installed (`rustup target add x86_64-unknown-linux-musl`), else with the
# host's own C library; static in both cases.
#
# glibc's start-up executes some forty CPUID instructions, each of which leaves a virtual machine for about 8 µs: on the
# reference machine starting and ending this program takes 0.58 ms with glibc and 0.27 ms with musl, and every
# invocation pays that. Where a function works for long it is the other way round: thumbnail is 10 % slower with musl.
set -eu

host=$(rustc -vV | sed -n 's/^host: //p')
musl="${host%-*}-musl"
if [ -d "$(rustc --print target-libdir --target "$musl" 2>/dev/null)" ]; then
    set -- --target "$musl"
fi
exec cargo build --release --locked -p sha256 "$@"
