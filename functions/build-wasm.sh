#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Rebuilds every wasm module that is checked in and compares it with the one that is, byte for byte.
#
#   build-wasm.sh            compare; exit 1 where one differs
#   build-wasm.sh --update   replace those that differ
#
# Where a toolchain is missing it prints `NOT REBUILT: <module>: <why>` and goes on. The bytes depend on the compilers'
# versions, so another version counts as a missing toolchain.
set -eu

RUST_VERSION=1.95.0  # with `rustup target add wasm32-wasip1`

cd "$(dirname "$0")"
update=no
case "${1-}" in
    --update) update=yes ;;
    '') ;;
    *) echo "usage: $0 [--update]" >&2; exit 2 ;;
esac
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
same=0 updated=0 differ=0 missing=0

not_rebuilt() { # module, reason
    echo "NOT REBUILT: $1: $2"
    missing=$((missing + 1))
}

compare() { # what was built, module
    if cmp -s "$1" "$2"; then
        echo "same: $2"
        same=$((same + 1))
    elif [ "$update" = yes ]; then
        cp "$1" "$2"
        chmod 644 "$2"
        echo "updated: $2"
        updated=$((updated + 1))
    else
        echo "DIFFERS: $2"
        differ=$((differ + 1))
    fi
}

why_not_rust() {
    version=$(rustc -V 2>/dev/null | cut -d' ' -f2) || version=
    if [ "$version" != "$RUST_VERSION" ]; then
        echo "needs rustc $RUST_VERSION, this is ${version:-none}"
    elif [ ! -d "$(rustc --print target-libdir --target wasm32-wasip1)" ]; then
        echo "needs the Rust target wasm32-wasip1"
    fi
}

# Panic messages name source files: the places where this machine keeps them are replaced by fixed ones.
remaps() {
    printf -- '--remap-path-prefix=%s=/functions' "$PWD"
    # As the standard library's own paths read where the component rust-src is not installed.
    printf -- '\037--remap-path-prefix=%s=/rustc/%s' "$(rustc --print sysroot)/lib/rustlib/src/rust" \
        "$(rustc -vV | sed -n 's/^commit-hash: //p')"
    for registry in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do
        printf -- '\037--remap-path-prefix=%s=/crates' "$registry"
    done
}

rust() { # package, module
    if [ -n "$rust_missing" ]; then
        not_rebuilt "$2" "$rust_missing"
        return
    fi
    CARGO_ENCODED_RUSTFLAGS=$(remaps) cargo build --quiet --release --locked --target wasm32-wasip1 \
        --target-dir "$target" -p "$1"
    compare "$target/wasm32-wasip1/release/$1.wasm" "$2"
}

why_not_c() {
    if ! command -v clang-16 >/dev/null; then
        echo "needs clang-16"
    elif ! command -v wasm-ld-16 >/dev/null; then
        echo "needs wasm-ld-16 (Debian: lld-16)"
    elif [ ! -e /usr/include/wasm32-wasi/unistd.h ]; then
        echo "needs the C library for WASI (Debian: wasi-libc)"
    elif [ ! -e "$(clang-16 --target=wasm32-wasi -print-libgcc-file-name)" ]; then
        echo "needs compiler-rt for wasm (Debian: libclang-rt-16-dev-wasm32)"
    fi
}

c() { # source, module, options of the linker
    if [ -n "$c_missing" ]; then
        not_rebuilt "$2" "$c_missing"
        return
    fi
    source=$1 module=$2
    shift 2
    # Two steps, and no -O in the second: else clang hands the module to whatever wasm-opt it finds. Without the
    # explicit path it asks for a wasm-ld without a version in its name.
    clang-16 --target=wasm32-wasi -std=c17 -O2 -Wall -Wextra -Werror -c -o "$built/out.o" "$source"
    clang-16 --target=wasm32-wasi -fuse-ld=/usr/bin/wasm-ld-16 -Wl,--strip-all "$@" -o "$built/out.wasm" "$built/out.o"
    compare "$built/out.wasm" "$module"
}

rust_missing=$(why_not_rust)
target=$PWD/target/wasm
[ -n "$rust_missing" ] || cargo fetch --quiet --locked --target wasm32-wasip1

rust markdown markdown/markdown.wasm
rust sha256 sha256-wasm/sha256-wasm.wasm
rust hostile tests/hostile/hostile.wasm

c_missing=$(why_not_c)
c crc/crc.c crc/crc.wasm -Wl,-z,stack-size=8192
c tests/bench/echo-wasm.c tests/bench/echo.wasm -nostdlib -Wl,-z,stack-size=4096

echo "wasm modules: $same same, $updated updated, $differ different, $missing not rebuilt"
[ "$differ" = 0 ]
