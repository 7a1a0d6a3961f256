// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The functions of WASI preview 1 that nearly every guest calls, straight over its memory.
//!
//! What wasmtime-wasi offers has files, sockets and streams behind it, and making a context for all that and finding a
//! stream in its tables costs several times what copying a small answer does. So the context is made by the first call
//! that needs it, and the functions here need it only for what is not plain: a pointer that is out of bounds or not
//! aligned, an empty buffer, a descriptor that is not one of the standard streams. Once there is a context (the guest
//! called a function that is not here) it gets every call, so there is never a second opinion on what is open. What
//! the guest sees is the same either way, but for one thing: output is not cut into pieces of 4 KiB.

use std::ops::Range;

use wasmtime::{Caller, Extern, Linker, Memory};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::p1::wasi_snapshot_preview1::{self as wasi, WasiSnapshotPreview1 as _};
use wasmtime_wasi::p2::{Pollable as _, StreamError};
use wiggle::GuestMemory;

use crate::guest::{Guest, HOSTCALL_BYTES_MAX, WASI_MODULE};
use crate::stdio::{Input, Output};

/// The errno of a call that succeeded.
const SUCCESS: i32 = 0;

/// The errno for a descriptor that is not open.
const BADF: i32 = 8;

/// Descriptors from here on are files, of which there are none.
const FIRST_FILE: i32 = 3;

/// Bytes of a pointer, and what it must be a multiple of.
const WORD_BYTES: usize = 4;

/// Bytes of an entry in an array of buffers: address and length.
const BUFFER_BYTES: usize = 2 * WORD_BYTES;

/// The buffers of one call that are looked at: Linux's IOV_MAX. A call may transfer less than it is asked to, and a guest
/// that names millions of empty buffers would keep the thread past its deadline while they are looked through.
const BUFFERS_MAX: u32 = 1024;

/// Puts the functions in front of wasmtime-wasi's.
pub(crate) fn shadow(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    type Transfer = (i32, i32, i32, i32);
    linker.allow_shadowing(true);
    linker.func_wrap_async(WASI_MODULE, "fd_read", |caller, args: Transfer| {
        Box::new(fd_read(caller, args))
    })?;
    linker.func_wrap_async(WASI_MODULE, "fd_write", |caller, args: Transfer| {
        Box::new(fd_write(caller, args))
    })?;
    linker.func_wrap(WASI_MODULE, "args_sizes_get", args_sizes_get)?;
    linker.func_wrap(WASI_MODULE, "args_get", args_get)?;
    linker.func_wrap(WASI_MODULE, "environ_sizes_get", environ_sizes_get)?;
    linker.func_wrap(WASI_MODULE, "environ_get", environ_get)?;
    linker.func_wrap(WASI_MODULE, "fd_prestat_get", fd_prestat_get)?;
    Ok(())
}

async fn fd_read(
    mut caller: Caller<'_, Guest>,
    (fd, buffers, count, read): (i32, i32, i32, i32),
) -> wasmtime::Result<i32> {
    let count = few(count);
    let memory = memory(&mut caller)?;
    let (bytes, guest) = memory.data_and_store_mut(&mut caller);
    let plain = match (
        guest.stdin(fd),
        word(bytes, read),
        first(bytes, buffers, count),
    ) {
        (Some(stdin), Some(read), Some(buffer)) => Some((stdin, read, buffer)),
        _ => None,
    };
    let Some((mut stdin, read, buffer)) = plain else {
        let (context, mut memory) = whole(memory, &mut caller);
        return wasi::fd_read(context, &mut memory, fd, buffers, count, read).await;
    };
    let length = loop {
        if let Some(length) = stdin.read_into(&mut memory.data_mut(&mut caller)[buffer.clone()]) {
            break length;
        }
        stdin.ready().await;
    };
    put(memory.data_mut(&mut caller), read, length);
    Ok(SUCCESS)
}

async fn fd_write(
    mut caller: Caller<'_, Guest>,
    (fd, buffers, count, written): (i32, i32, i32, i32),
) -> wasmtime::Result<i32> {
    let count = few(count);
    let memory = memory(&mut caller)?;
    let (bytes, guest) = memory.data_and_store_mut(&mut caller);
    let plain = match (
        guest.output(fd),
        word(bytes, written),
        first(bytes, buffers, count),
    ) {
        (Some(output), Some(written), Some(buffer)) => Some((output, written, buffer)),
        _ => None,
    };
    let Some((mut output, written, buffer)) = plain else {
        let (context, mut memory) = whole(memory, &mut caller);
        return wasi::fd_write(context, &mut memory, fd, buffers, count, written).await;
    };
    let mut rest = buffer.clone();
    while !rest.is_empty() {
        let piece = rest.len().min(output.room());
        if piece == 0 {
            output.ready().await;
            continue;
        }
        output
            .append(&memory.data(&caller)[rest.start..rest.start + piece])
            .map_err(|problem| match problem {
                StreamError::Trap(marker) => marker,
                StreamError::Closed | StreamError::LastOperationFailed(_) => problem.into(),
            })?;
        rest.start += piece;
    }
    put(memory.data_mut(&mut caller), written, buffer.len());
    Ok(SUCCESS)
}

fn args_sizes_get(mut caller: Caller<'_, Guest>, count: i32, size: i32) -> wasmtime::Result<i32> {
    let memory = memory(&mut caller)?;
    let (bytes, guest) = memory.data_and_store_mut(&mut caller);
    if let Some(world) = guest.world()
        && put_sizes(bytes, count, size, world.args().map(|arg| [arg, "", ""])).is_some()
    {
        return Ok(SUCCESS);
    }
    let (context, mut memory) = whole(memory, &mut caller);
    wasi::args_sizes_get(context, &mut memory, count, size)
}

fn args_get(mut caller: Caller<'_, Guest>, array: i32, text: i32) -> wasmtime::Result<i32> {
    let memory = memory(&mut caller)?;
    let (bytes, guest) = memory.data_and_store_mut(&mut caller);
    if let Some(world) = guest.world()
        && put_strings(bytes, array, text, world.args().map(|arg| [arg, "", ""])).is_some()
    {
        return Ok(SUCCESS);
    }
    let (context, mut memory) = whole(memory, &mut caller);
    wasi::args_get(context, &mut memory, array, text)
}

fn environ_sizes_get(
    mut caller: Caller<'_, Guest>,
    count: i32,
    size: i32,
) -> wasmtime::Result<i32> {
    let memory = memory(&mut caller)?;
    let (bytes, guest) = memory.data_and_store_mut(&mut caller);
    if let Some(world) = guest.world() {
        let variables = world.env().map(|(name, value)| [name, "=", value]);
        if put_sizes(bytes, count, size, variables).is_some() {
            return Ok(SUCCESS);
        }
    }
    let (context, mut memory) = whole(memory, &mut caller);
    wasi::environ_sizes_get(context, &mut memory, count, size)
}

fn environ_get(mut caller: Caller<'_, Guest>, array: i32, text: i32) -> wasmtime::Result<i32> {
    let memory = memory(&mut caller)?;
    let (bytes, guest) = memory.data_and_store_mut(&mut caller);
    if let Some(world) = guest.world() {
        let variables = world.env().map(|(name, value)| [name, "=", value]);
        if put_strings(bytes, array, text, variables).is_some() {
            return Ok(SUCCESS);
        }
    }
    let (context, mut memory) = whole(memory, &mut caller);
    wasi::environ_get(context, &mut memory, array, text)
}

/// Asked by every C library at its start, until the answer is that there are no more.
fn fd_prestat_get(mut caller: Caller<'_, Guest>, fd: i32, prestat: i32) -> wasmtime::Result<i32> {
    if FIRST_FILE <= fd && caller.data().world().is_some() {
        return Ok(BADF);
    }
    let memory = memory(&mut caller)?;
    let (context, mut memory) = whole(memory, &mut caller);
    wasi::fd_prestat_get(context, &mut memory, fd, prestat)
}

/// The compiler refuses a module without one.
fn memory(caller: &mut Caller<'_, Guest>) -> wasmtime::Result<Memory> {
    caller
        .get_export("memory")
        .and_then(Extern::into_memory)
        .ok_or_else(|| wasmtime::Error::msg("the module exports no memory"))
}

/// All of WASI, made now if this is the first call that needs it.
fn whole<'c>(
    memory: Memory,
    caller: &'c mut Caller<'_, Guest>,
) -> (&'c mut WasiP1Ctx, GuestMemory<'c>) {
    let (bytes, guest) = memory.data_and_store_mut(caller);
    let context = guest.wasi();
    context.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
    (context, GuestMemory::Unshared(bytes))
}

/// As many of a call's buffers as are looked at.
fn few(count: i32) -> i32 {
    count.cast_unsigned().min(BUFFERS_MAX).cast_signed()
}

/// Where a word in the guest's memory is; None where it is not wholly in it, or not aligned.
fn word(bytes: &[u8], address: i32) -> Option<usize> {
    let start = address.cast_unsigned() as usize;
    (start.is_multiple_of(WORD_BYTES) && start + WORD_BYTES <= bytes.len()).then_some(start)
}

fn get(bytes: &[u8], start: usize) -> usize {
    bytes[start..start + WORD_BYTES]
        .iter()
        .rev()
        .fold(0, |value, &byte| value << 8 | usize::from(byte))
}

/// What is put fits: it measures something in a 32-bit memory.
fn put(bytes: &mut [u8], start: usize, value: usize) {
    bytes[start..start + WORD_BYTES].copy_from_slice(&value.to_le_bytes()[..WORD_BYTES]);
}

/// The first buffer of an array that has any bytes, which is the only one that a transfer uses.
fn first(bytes: &[u8], array: i32, count: i32) -> Option<Range<usize>> {
    let start = word(bytes, array)?;
    let array_bytes = (count.cast_unsigned() as usize).checked_mul(BUFFER_BYTES)?;
    let array = bytes.get(start..start.checked_add(array_bytes)?)?;
    let entry = array
        .chunks_exact(BUFFER_BYTES)
        .find(|entry| get(entry, WORD_BYTES) != 0)?;
    let (from, length) = (get(entry, 0), get(entry, WORD_BYTES));
    let plain = array_bytes + length <= HOSTCALL_BYTES_MAX && from + length <= bytes.len();
    plain.then_some(from..from + length)
}

/// Writes how many strings there are and their bytes, a NUL behind each. None where a pointer is not plain.
fn put_sizes<'s>(
    bytes: &mut [u8],
    count: i32,
    size: i32,
    strings: impl Iterator<Item = [&'s str; 3]>,
) -> Option<()> {
    let (count, size) = (word(bytes, count)?, word(bytes, size)?);
    let length = |parts: [&str; 3]| parts.map(str::len).iter().sum::<usize>() + 1;
    let (strings, text) = strings.fold((0, 0), |(strings, text), parts| {
        (strings + 1, text + length(parts))
    });
    put(bytes, count, strings);
    put(bytes, size, text);
    Some(())
}

/// Writes each string with a NUL behind it to `text`, and its address to `array`. None where a pointer is not plain;
/// what was written until then is written again by the one who is asked next.
fn put_strings<'s>(
    bytes: &mut [u8],
    array: i32,
    text: i32,
    strings: impl Iterator<Item = [&'s str; 3]>,
) -> Option<()> {
    let mut array = array.cast_unsigned();
    let mut text = text.cast_unsigned() as usize;
    for parts in strings {
        let entry = word(bytes, array.cast_signed())?;
        put(bytes, entry, text);
        array = array.checked_add(u32::try_from(WORD_BYTES).ok()?)?;
        for part in parts
            .map(str::as_bytes)
            .into_iter()
            .chain([b"\0".as_slice()])
        {
            bytes
                .get_mut(text..text + part.len())?
                .copy_from_slice(part);
            text += part.len();
        }
    }
    Some(())
}

impl Guest {
    fn stdin(&self, fd: i32) -> Option<Input> {
        self.world()
            .filter(|_| fd == 0)
            .map(|world| world.stdin.clone())
    }

    fn output(&self, fd: i32) -> Option<Output> {
        let world = self.world()?;
        match fd {
            1 => Some(world.stdout.clone()),
            2 => Some(world.stderr.clone()),
            _ => None,
        }
    }
}
