// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a function can do to the three pipes that it is given.

use std::io::{self, Write as _};
use std::thread;
use std::time::Duration;

use crate::{Mode, Outcome, number, rest_of_stdin, sys};

pub(crate) const MODES: &[Mode] = &[
    ("no-output", "", no_output),
    ("print", "WORDS…", print_words),
    ("echo-rest", "", echo_rest),
    ("read-nothing", "[stay]", read_nothing),
    ("read-slow", "[BYTES] [PAUSE_MS]", read_slow),
    ("drip", "[PAUSE_MS]", drip),
    ("flood-stdout", "[BYTES]", flood_stdout),
    ("flood-stderr", "[BYTES]", flood_stderr),
    ("flood-both", "[BYTES]", flood_both),
    ("long-log-line", "[BYTES]", long_log_line),
    ("log-lines", "COUNT", log_lines),
    ("close-stdout-and-sleep", "", close_stdout_and_sleep),
    ("close-all-and-sleep", "", close_all_and_sleep),
    ("output-then-exit", "BYTES CODE", output_then_exit),
    ("nasty-log", "", nasty_log),
];

/// One write of the floods.
const FLOOD_BYTES: usize = 64 * 1024;

/// All modes print one on `/fn` but those whose point is what stands at the beginning of stdout.
pub(crate) fn wants_cgi_header(mode: &str) -> bool {
    !matches!(
        mode,
        "no-output" | "echo-rest" | "close-stdout-and-sleep" | "close-all-and-sleep"
    )
}

/// A closed stdout is one of the things under test, and then there is nobody to tell.
pub(crate) fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    drop(
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush()),
    );
}

fn no_output(_: &[&str]) -> Outcome {
    Ok(0)
}

fn print_words(words: &[&str]) -> Outcome {
    print(&words.join(" "));
    print("\n");
    Ok(0)
}

/// On `/fn`: a CGI answer, or what is none, chosen by the caller.
fn echo_rest(_: &[&str]) -> Outcome {
    let rest = rest_of_stdin().map_err(|error| error.to_string())?;
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(&rest)
        .and_then(|()| stdout.flush())
        .map_err(|error| error.to_string())?;
    Ok(0)
}

fn read_nothing(arguments: &[&str]) -> Outcome {
    print("read nothing\n");
    if arguments == ["stay"] {
        sys::sleep_for_ever();
    }
    Ok(0)
}

fn read_slow(arguments: &[&str]) -> Outcome {
    let mut buffer = vec![0; number(arguments, 0, 1024)? as usize];
    let pause = Duration::from_millis(number(arguments, 1, 100)?);
    let mut total = 0;
    loop {
        match sys::read_stdin(&mut buffer).map_err(|error| error.to_string())? {
            0 => break,
            count => total += count,
        }
        thread::sleep(pause);
    }
    print(&format!("read {total}\n"));
    Ok(0)
}

/// Alive for ever, and never quiet for long enough to look dead.
fn drip(arguments: &[&str]) -> Outcome {
    let pause = Duration::from_millis(number(arguments, 0, 1000)?);
    loop {
        print(".");
        thread::sleep(pause);
    }
}

fn flood_stdout(arguments: &[&str]) -> Outcome {
    flood(arguments, &mut [&mut io::stdout()])
}

fn flood_stderr(arguments: &[&str]) -> Outcome {
    flood(arguments, &mut [&mut io::stderr()])?;
    print("done\n");
    Ok(0)
}

/// Alternately: whoever reads the one to its end before the other waits for ever.
fn flood_both(arguments: &[&str]) -> Outcome {
    flood(arguments, &mut [&mut io::stdout(), &mut io::stderr()])
}

/// Lines of 63 digits, BYTES to each stream; 0 or nothing: for ever.
fn flood(arguments: &[&str], streams: &mut [&mut dyn io::Write]) -> Outcome {
    let limit = match number(arguments, 0, 0)? {
        0 => u64::MAX,
        bytes => bytes,
    };
    let block: Vec<u8> = (0..FLOOD_BYTES)
        .map(|index| {
            if index % 64 == 63 {
                b'\n'
            } else {
                b'0' + (index % 10) as u8
            }
        })
        .collect();
    let mut left = limit;
    while left > 0 {
        let count = left.min(FLOOD_BYTES as u64);
        for stream in &mut *streams {
            stream
                .write_all(&block[..count as usize])
                .map_err(|error| error.to_string())?;
        }
        left -= count;
    }
    for stream in streams {
        stream.flush().map_err(|error| error.to_string())?;
    }
    Ok(0)
}

/// What follows the long line must arrive all the same.
fn long_log_line(arguments: &[&str]) -> Outcome {
    let mut line = vec![b'x'; number(arguments, 0, 1024 * 1024)? as usize];
    line.push(b'\n');
    let mut stderr = io::stderr().lock();
    stderr
        .write_all(b"before the long line\n")
        .map_err(|error| error.to_string())?;
    stderr.write_all(&line).map_err(|error| error.to_string())?;
    for index in 1..=3 {
        writeln!(stderr, "after the long line {index}").map_err(|error| error.to_string())?;
    }
    print("logged\n");
    Ok(0)
}

fn log_lines(arguments: &[&str]) -> Outcome {
    let mut stderr = io::stderr().lock();
    for index in 1..=number(arguments, 0, 1)? {
        writeln!(stderr, "log line {index}").map_err(|error| error.to_string())?;
    }
    print("logged\n");
    Ok(0)
}

fn close_stdout_and_sleep(_: &[&str]) -> Outcome {
    sys::close(1);
    sys::sleep_for_ever();
}

fn close_all_and_sleep(_: &[&str]) -> Outcome {
    for fd in 0..3 {
        sys::close(fd);
    }
    sys::sleep_for_ever();
}

/// A failure that comes when part of the answer may be with the caller already.
fn output_then_exit(arguments: &[&str]) -> Outcome {
    let code = u8::try_from(number(arguments, 1, 1)?).map_err(|error| error.to_string())?;
    if number(arguments, 0, 1)? > 0 {
        flood(
            &arguments[..1.min(arguments.len())],
            &mut [&mut io::stdout()],
        )?;
    }
    Ok(code)
}

/// Terminal control, NUL, a carriage return, and bytes that are not UTF-8.
fn nasty_log(_: &[&str]) -> Outcome {
    let text: &[u8] = b"\x1b[2J\x1b]0;owned\x07red\x1b[31m\nnul:\0:\nfirst\rsecond\nbad:\xff\xfe:\n\"quoted\\\"\n";
    io::stderr()
        .write_all(text)
        .map_err(|error| error.to_string())?;
    print("logged\n");
    Ok(0)
}
