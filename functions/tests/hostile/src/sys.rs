// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System calls by number, with the kernel's answer as it is.

use std::io::{self, Read};
use std::time::Duration;

/// stdin without a buffer: what a mode does not read stays in the pipe.
pub(crate) struct Stdin;

impl Read for Stdin {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_stdin(buffer)
    }
}

pub(crate) fn read_stdin(buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: read(2) writes at most `buffer.len()` bytes to the place that `buffer` points to.
        let count = unsafe { libc::read(0, buffer.as_mut_ptr().cast(), buffer.len()) };
        if let Ok(count) = usize::try_from(count) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

pub(crate) fn close(fd: i32) {
    // SAFETY: no object of std owns this fd; std's own stdout and stderr take EBADF as success.
    unsafe { libc::close(fd) };
}

/// Until something kills the process.
pub(crate) fn sleep_for_ever() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

#[cfg(target_os = "linux")]
pub(crate) use linux::*;

#[cfg(target_os = "linux")]
mod linux {
    use std::ffi::{CStr, c_char, c_int, c_long};

    unsafe extern "C" {
        /// glibc 2.32 and later.
        safe fn strerrorname_np(errno: c_int) -> *const c_char;
    }

    /// An errno(3).
    pub(crate) struct Errno(pub(crate) i32);

    impl Errno {
        pub(crate) fn last() -> Self {
            Self(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
        }

        /// `EPERM`, `ENOSYS`, …
        pub(crate) fn name(self) -> String {
            let name = strerrorname_np(self.0);
            if name.is_null() {
                return format!("E{}", self.0);
            }
            // SAFETY: it is not null, and then a static string of the C library.
            unsafe { CStr::from_ptr(name) }
                .to_string_lossy()
                .into_owned()
        }
    }

    /// One register of a system call.
    pub(crate) trait Register {
        fn register(self) -> c_long;
    }

    macro_rules! registers {
        ($($kind:ty),*) => {$(
            impl Register for $kind {
                #[expect(clippy::allow_attributes, reason = "a cast is trivial for one of the types only")]
                #[allow(trivial_numeric_casts, clippy::cast_lossless, reason = "as above")]
                fn register(self) -> c_long {
                    self as c_long
                }
            }
        )*};
    }
    registers!(i32, i64, u32, u64, usize);

    impl<T> Register for *const T {
        fn register(self) -> c_long {
            self.expose_provenance() as c_long
        }
    }

    impl<T> Register for *mut T {
        fn register(self) -> c_long {
            self.expose_provenance() as c_long
        }
    }

    pub(crate) fn raw(number: c_long, arguments: [c_long; 6]) -> Result<i64, Errno> {
        let [a, b, c, d, e, f] = arguments;
        // SAFETY: every caller passes numbers, null, or pointers to objects that live until the call returns and are
        // as large as the call may read or write. Which effect the call has is what the caller is for.
        match unsafe { libc::syscall(number, a, b, c, d, e, f) } {
            -1 => Err(Errno::last()),
            value => Ok(value),
        }
    }

    /// `call!(SYS_name, arguments…)`, missing arguments being 0.
    macro_rules! call {
        ($name:ident $(, $argument:expr)* $(,)?) => {{
            let given: &[std::ffi::c_long] = &[$($crate::sys::Register::register($argument)),*];
            let mut registers = [0; 6];
            registers[..given.len()].copy_from_slice(given);
            $crate::sys::raw(libc::$name, registers)
        }};
    }
    pub(crate) use call;

    /// `ok` or the errno's name.
    pub(crate) fn verdict(result: Result<i64, Errno>) -> String {
        match result {
            Ok(_) => "ok".to_owned(),
            Err(errno) => errno.name(),
        }
    }

    pub(crate) enum Fork {
        Parent,
        Child,
    }

    pub(crate) fn fork() -> Result<Fork, Errno> {
        // SAFETY: the program has one thread wherever this is called, so that the child may do anything.
        match unsafe { libc::fork() } {
            -1 => Err(Errno::last()),
            0 => Ok(Fork::Child),
            _ => Ok(Fork::Parent),
        }
    }

    /// Ends the process without running what std would run at exit.
    pub(crate) fn exit_now(code: i32) -> ! {
        // SAFETY: _exit(2) has no precondition.
        unsafe { libc::_exit(code) }
    }

    pub(crate) fn ignore(signal: i32) {
        // SAFETY: SIG_IGN runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
