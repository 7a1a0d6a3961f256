// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Guests, as WAT. Each does one thing.

/// The imports, a memory of `pages` 64 KiB pages, `body`, and the helpers below.
pub(crate) fn guest(pages: u32, body: &str) -> Vec<u8> {
    let text = format!("(module {IMPORTS} (memory (export \"memory\") {pages}) {HELPERS} {body})");
    wat::parse_str(text).expect("the test's own WAT")
}

const IMPORTS: &str = r#"
    (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
    (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_get" (func $environ_get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes_get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "random_get" (func $random_get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_prestat_get" (func $fd_prestat_get (param i32 i32) (result i32)))
"#;

/// Scratch for the calls is below 1024.
const HELPERS: &str = r"
    (func $write (param $fd i32) (param $from i32) (param $length i32)
      (loop $again
        (if (local.get $length) (then
          (i32.store (i32.const 0) (local.get $from))
          (i32.store (i32.const 4) (local.get $length))
          (if (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
          (local.set $from (i32.add (local.get $from) (i32.load (i32.const 8))))
          (local.set $length (i32.sub (local.get $length) (i32.load (i32.const 8))))
          (br $again)))))
    (func $sleep (param $nanoseconds i64)
      (memory.fill (i32.const 16) (i32.const 0) (i32.const 48))
      (i32.store (i32.const 32) (i32.const 1))
      (i64.store (i32.const 40) (local.get $nanoseconds))
      (if (call $poll_oneoff (i32.const 16) (i32.const 128) (i32.const 1) (i32.const 8)) (then unreachable)))
    (func $spin (loop $again (br $again)))
";

/// Does nothing.
pub(crate) fn empty() -> Vec<u8> {
    guest(1, r#"(func (export "_start"))"#)
}

/// stdin to stdout.
pub(crate) fn echo() -> Vec<u8> {
    guest(
        2,
        r#"(func (export "_start")
            (loop $again
              (i32.store (i32.const 0) (i32.const 1024))
              (i32.store (i32.const 4) (i32.const 65536))
              (if (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
              (if (i32.load (i32.const 8)) (then
                (call $write (i32.const 1) (i32.const 1024) (i32.load (i32.const 8)))
                (br $again)))))"#,
    )
}

/// Adds one to a global and to a byte of memory, and prints both: `11` in a fresh instance.
pub(crate) fn counter() -> Vec<u8> {
    guest(
        1,
        r#"(global $count (mut i32) (i32.const 0))
           (data (i32.const 2048) "0")
           (func (export "_start")
             (global.set $count (i32.add (global.get $count) (i32.const 1)))
             (i32.store8 (i32.const 2048) (i32.add (i32.load8_u (i32.const 2048)) (i32.const 1)))
             (i32.store8 (i32.const 2049) (i32.add (global.get $count) (i32.const 48)))
             ;; Beyond the data: a page that no image covers.
             (i32.store8 (i32.const 40000) (i32.add (i32.load8_u (i32.const 40000)) (i32.const 49)))
             (i32.store8 (i32.const 2050) (i32.load8_u (i32.const 40000)))
             (call $write (i32.const 1) (i32.const 2048) (i32.const 3)))"#,
    )
}

/// Exits with the first four bytes of stdin as the code.
pub(crate) fn exit() -> Vec<u8> {
    guest(
        1,
        r#"(func (export "_start")
            (i32.store (i32.const 0) (i32.const 1024))
            (i32.store (i32.const 4) (i32.const 4))
            (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
            (call $proc_exit (i32.load (i32.const 1024))))"#,
    )
}

/// Traps in a function with a name.
pub(crate) fn trap() -> Vec<u8> {
    guest(
        1,
        r#"(func $the_culprit unreachable) (func (export "_start") (call $the_culprit))"#,
    )
}

/// Writes `length` bytes to stdout, then traps in a function whose name has 100,000 bytes.
pub(crate) fn trap_at_length(length: u32) -> Vec<u8> {
    let name = "n".repeat(100_000);
    let body = format!(
        r#"(func ${name} unreachable)
           (func (export "_start")
             (call $write (i32.const 1) (i32.const 1024) (i32.const {length}))
             (call ${name}))"#
    );
    guest(2, &body)
}

/// Never returns.
pub(crate) fn spin() -> Vec<u8> {
    guest(1, r#"(func (export "_start") (call $spin))"#)
}

/// Never finishes being instantiated.
pub(crate) fn spin_in_start() -> Vec<u8> {
    guest(1, r#"(start $spin) (func (export "_start"))"#)
}

/// Says `up`, then sleeps for an hour.
pub(crate) fn sleep() -> Vec<u8> {
    guest(
        1,
        r#"(data (i32.const 2048) "up")
           (func (export "_start")
             (call $write (i32.const 1) (i32.const 2048) (i32.const 2))
             (call $sleep (i64.const 3600000000000)))"#,
    )
}

/// Grows its memory until it is refused, then exits 0.
pub(crate) fn grow() -> Vec<u8> {
    guest(
        1,
        r#"(func (export "_start")
            (loop $again (br_if $again (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))))"#,
    )
}

/// Grows its table until it is refused, then exits 0.
pub(crate) fn grow_table() -> Vec<u8> {
    guest(
        1,
        r#"(table $t 1 funcref)
           (func (export "_start")
            (loop $again
              (br_if $again (i32.ne (table.grow $t (ref.null func) (i32.const 1000)) (i32.const -1)))))"#,
    )
}

/// Writes 32 KiB to `fd` without end.
pub(crate) fn flood(fd: u32) -> Vec<u8> {
    let body = format!(
        r#"(func (export "_start")
            (loop $again
              (call $write (i32.const {fd}) (i32.const 1024) (i32.const 32768))
              (br $again)))"#
    );
    guest(1, &body)
}

/// Writes `times` times 32 KiB to stderr.
pub(crate) fn log(times: u32) -> Vec<u8> {
    let body = format!(
        r#"(func (export "_start") (local $left i32)
            (local.set $left (i32.const {times}))
            (loop $again
              (call $write (i32.const 2) (i32.const 1024) (i32.const 32768))
              (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1))))))"#
    );
    guest(1, &body)
}

/// Calls itself for ever.
pub(crate) fn recurse() -> Vec<u8> {
    guest(
        1,
        r#"(func $deeper (param i32) (result i32)
             (i32.add (i32.const 1) (call $deeper (i32.add (local.get 0) (i32.const 1)))))
           (func (export "_start") (drop (call $deeper (i32.const 0))))"#,
    )
}

/// Asks for 1,000,000 subscriptions in one `poll_oneoff`, and exits with its errno.
pub(crate) fn subscribe_to_much() -> Vec<u8> {
    guest(
        2048,
        r#"(func (export "_start")
            (call $proc_exit
              (call $poll_oneoff (i32.const 1024) (i32.const 60000000) (i32.const 1000000) (i32.const 8))))"#,
    )
}

/// Asks for 1 GiB of random bytes, and exits with the errno.
pub(crate) fn draw_much() -> Vec<u8> {
    guest(
        1,
        r#"(func (export "_start")
            (call $proc_exit (call $random_get (i32.const 0) (i32.const 1073741824))))"#,
    )
}

/// Prints its arguments and environment, each ended by NUL, then exits with the errno of asking for the first preopen.
pub(crate) fn world() -> Vec<u8> {
    guest(
        4,
        r#"(func (export "_start")
            (drop (call $args_sizes_get (i32.const 0) (i32.const 4)))
            (i32.store (i32.const 12) (i32.load (i32.const 4)))
            (drop (call $args_get (i32.const 1024) (i32.const 65536)))
            (call $write (i32.const 1) (i32.const 65536) (i32.load (i32.const 12)))
            (drop (call $environ_sizes_get (i32.const 0) (i32.const 4)))
            (i32.store (i32.const 12) (i32.load (i32.const 4)))
            (drop (call $environ_get (i32.const 1024) (i32.const 65536)))
            (call $write (i32.const 1) (i32.const 65536) (i32.load (i32.const 12)))
            (call $proc_exit (call $fd_prestat_get (i32.const 3) (i32.const 0))))"#,
    )
}
