// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `whoami`: what the function sees of itself and of the world, as JSON.

use std::env;

use crate::json::Json;
use crate::stdio::print;
use crate::{Mode, Outcome};

pub(crate) const MODES: &[Mode] = &[("whoami", "", whoami), ("env", "", environment)];

fn whoami(_: &[&str]) -> Outcome {
    let mut members = vec![
        ("arguments".to_owned(), Json::texts(env::args())),
        ("environment".to_owned(), variables()),
    ];
    members.extend(platform::members());
    print(&format!("{}\n", Json::object(members)));
    Ok(0)
}

fn environment(_: &[&str]) -> Outcome {
    print(&format!("{}\n", variables()));
    Ok(0)
}

fn variables() -> Json {
    Json::object(env::vars_os().map(|(name, value)| {
        (
            name.to_string_lossy().into_owned(),
            Json::text(value.to_string_lossy()),
        )
    }))
}

#[cfg(not(target_os = "linux"))]
pub(crate) use platform::open_fds;
#[cfg(target_os = "linux")]
pub(crate) use platform::{fd_names, lines, processes, status_field};

#[cfg(target_os = "linux")]
mod platform {
    use std::ffi::CStr;
    use std::fs;
    use std::path::Path;

    use crate::json::Json;
    use crate::sys::{call, verdict};

    const NAMESPACES: [&str; 8] = ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time"];

    const STATUS_FIELDS: [&str; 14] = [
        "Uid",
        "Gid",
        "Groups",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "Seccomp_filters",
        "NSpid",
        "Threads",
        "Cpus_allowed_list",
    ];

    /// Directories in which a function must not be able to make a file, and its scratch, in which it must.
    const WRITE_ATTEMPTS: [(&str, &CStr); 10] = [
        ("/", c"/hostile-write"),
        ("/function", c"/function/hostile-write"),
        ("/proc", c"/proc/hostile-write"),
        ("/dev", c"/dev/hostile-write"),
        ("/scratch", c"/scratch/hostile-write"),
        ("/etc", c"/etc/hostile-write"),
        ("/usr", c"/usr/hostile-write"),
        ("/tmp", c"/tmp/hostile-write"),
        ("/var/tmp", c"/var/tmp/hostile-write"),
        ("/dev/shm", c"/dev/shm/hostile-write"),
    ];

    /// Files that exist already, opened for writing.
    const OVERWRITE_ATTEMPTS: [(&str, &CStr); 4] = [
        ("/proc/sys/kernel/hostname", c"/proc/sys/kernel/hostname"),
        (
            "/proc/sys/vm/overcommit_memory",
            c"/proc/sys/vm/overcommit_memory",
        ),
        ("/proc/self/oom_score_adj", c"/proc/self/oom_score_adj"),
        ("own executable", c"/proc/self/exe"),
    ];

    pub(super) fn members() -> Vec<(String, Json)> {
        let cwd = std::env::current_dir()
            .map_or_else(|error| error.to_string(), |path| path.display().to_string());
        [
            ("uid", id(call!(SYS_getuid))),
            ("euid", id(call!(SYS_geteuid))),
            ("gid", id(call!(SYS_getgid))),
            ("egid", id(call!(SYS_getegid))),
            ("pid", Json::Number(std::process::id().into())),
            ("ppid", id(call!(SYS_getppid))),
            ("sid", id(call!(SYS_getsid, 0))),
            (
                "securebits",
                id(call!(SYS_prctl, libc::PR_GET_SECUREBITS, 0, 0, 0, 0)),
            ),
            (
                "dumpable",
                id(call!(SYS_prctl, libc::PR_GET_DUMPABLE, 0, 0, 0, 0)),
            ),
            (
                "status",
                Json::object(STATUS_FIELDS.map(|name| (name, Json::text(status_field(name))))),
            ),
            (
                "namespaces",
                Json::object(NAMESPACES.map(|name| (name, link(&format!("/proc/self/ns/{name}"))))),
            ),
            ("uid_map", lines("/proc/self/uid_map")),
            ("gid_map", lines("/proc/self/gid_map")),
            ("fds", Json::object(fds())),
            ("cwd", Json::text(cwd)),
            ("root", names("/")),
            ("dev", names("/dev")),
            ("function", names("/function")),
            (
                "processes",
                Json::List(
                    processes()
                        .into_iter()
                        .map(|pid| Json::Number(pid.into()))
                        .collect(),
                ),
            ),
            ("mounts", lines("/proc/self/mountinfo")),
            ("cgroup", lines("/proc/self/cgroup")),
            ("limits", lines("/proc/self/limits")),
            ("hostname", Json::text(hostname())),
            ("interfaces", lines("/proc/net/dev")),
            ("oom_score_adj", lines("/proc/self/oom_score_adj")),
            (
                "writes",
                Json::object(WRITE_ATTEMPTS.map(|(name, path)| (name, Json::text(create(path))))),
            ),
            (
                "overwrites",
                Json::object(
                    OVERWRITE_ATTEMPTS.map(|(name, path)| (name, Json::text(overwrite(path)))),
                ),
            ),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }

    fn id(result: Result<i64, crate::sys::Errno>) -> Json {
        result.map_or_else(|errno| Json::text(errno.name()), Json::Number)
    }

    /// A line of /proc/self/status, its runs of white space made one space each.
    pub(crate) fn status_field(name: &str) -> String {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or("missing")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    }

    pub(crate) fn lines(path: &str) -> Json {
        match fs::read(path) {
            Ok(bytes) => Json::texts(String::from_utf8_lossy(&bytes).lines()),
            Err(error) => Json::text(error.to_string()),
        }
    }

    fn link(path: &str) -> Json {
        match fs::read_link(path) {
            Ok(target) => Json::text(target.display().to_string()),
            Err(error) => Json::text(error.to_string()),
        }
    }

    fn names(path: &str) -> Json {
        match list(path) {
            Ok(names) => Json::texts(names),
            Err(error) => Json::text(error.to_string()),
        }
    }

    fn list(path: &str) -> std::io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(names)
    }

    pub(crate) fn processes() -> Vec<u32> {
        let mut pids: Vec<u32> = list("/proc")
            .unwrap_or_default()
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        pids.sort_unstable();
        pids
    }

    /// Without the one that lists the directory: it is closed by the time its link is read.
    fn fds() -> Vec<(String, Json)> {
        let names = list("/proc/self/fd").unwrap_or_default();
        names
            .into_iter()
            .filter_map(|name| {
                let target = fs::read_link(Path::new("/proc/self/fd").join(&name)).ok()?;
                Some((name, Json::text(target.display().to_string())))
            })
            .collect()
    }

    pub(crate) fn fd_names() -> Vec<String> {
        fds().into_iter().map(|(name, _)| name).collect()
    }

    fn hostname() -> String {
        fs::read_to_string("/proc/sys/kernel/hostname")
            .map_or_else(|error| error.to_string(), |name| name.trim_end().to_owned())
    }

    /// `ok` or the errno; what could be made is removed again.
    fn create(path: &CStr) -> String {
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_CLOEXEC;
        let result = call!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o600);
        if let Ok(fd) = result {
            drop(call!(SYS_close, fd));
            drop(call!(SYS_unlinkat, libc::AT_FDCWD, path.as_ptr(), 0));
        }
        verdict(result)
    }

    fn overwrite(path: &CStr) -> String {
        let result = call!(
            SYS_openat,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::O_WRONLY | libc::O_CLOEXEC
        );
        if let Ok(fd) = result {
            drop(call!(SYS_close, fd));
        }
        verdict(result)
    }
}

#[cfg(not(target_os = "linux"))]
mod platform {
    use crate::json::Json;

    // WASI preview 1, by hand: whether each fd exists and which directory it opens, if any.
    #[link(wasm_import_module = "wasi_snapshot_preview1")]
    unsafe extern "C" {
        fn fd_fdstat_get(fd: u32, stat: *mut [u64; 3]) -> u32;
        fn fd_prestat_get(fd: u32, stat: *mut [u32; 2]) -> u32;
    }

    const FDS_MAX: u32 = 64;

    pub(crate) fn open_fds() -> Vec<Json> {
        let is_open = |fd: &u32| {
            let mut stat = [0; 3];
            // SAFETY: the host writes one fdstat of 24 bytes to where `stat` is.
            unsafe { fd_fdstat_get(*fd, &raw mut stat) == 0 }
        };
        let open = (0..FDS_MAX).filter(is_open);
        open.map(|fd| Json::Number(fd.into())).collect()
    }

    pub(super) fn members() -> Vec<(String, Json)> {
        let mut preopens = Vec::new();
        for fd in 0..FDS_MAX {
            let mut prestat = [0; 2];
            // SAFETY: the host writes one prestat of 8 bytes to where `prestat` is.
            if unsafe { fd_prestat_get(fd, &raw mut prestat) } == 0 {
                preopens.push(Json::Number(fd.into()));
            }
        }
        let opened = ["/", "/etc/passwd", ".", "/proc/self/status"].map(|path| {
            let result = std::fs::File::open(path);
            (
                path,
                Json::text(result.map_or_else(|error| error.to_string(), |_| "ok".to_owned())),
            )
        });
        vec![
            ("fds".to_owned(), Json::List(open_fds())),
            ("preopens".to_owned(), Json::List(preopens)),
            ("opens".to_owned(), Json::object(opened)),
        ]
    }
}
