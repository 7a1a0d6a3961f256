// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A worker that the code it runs has taken over says what no worker says.

use std::{
    io::IoSlice,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
};

use super::*;

/// The most that one message may carry (`SCM_MAX_FD`, unix(7)).
const FDS_MAX: usize = 253;

/// The gateway's end with its reader, and the worker's.
fn connect() -> (Arc<Calls>, tokio::task::JoinHandle<()>, OwnedFd) {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    let (channel, calls) = (Arc::new(Channel::new(ours).unwrap()), Arc::default());
    let reader = tokio::spawn(read(channel, Arc::clone(&calls)));
    (calls, reader, theirs)
}

fn enter(calls: &Arc<Calls>) -> CallEnd {
    CallEnd {
        seq: calls.enter().unwrap(),
        calls: Arc::clone(calls),
    }
}

fn say(worker: &OwnedFd, packet: &[u8], fds: &[i32]) {
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &[] } else { &rights[..] };
    let parts = [IoSlice::new(packet)];
    sendmsg::<()>(worker.as_raw_fd(), &parts, control, MsgFlags::empty(), None).unwrap();
}

fn packet(events: &[Event], payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    for event in events {
        frame::append(event, payload, &mut packet).unwrap();
    }
    packet
}

fn done(seq: u32) -> Event {
    Event::Done {
        seq,
        ending: Ending::Exited(0),
        usage: Usage::default(),
    }
}

#[tokio::test]
async fn what_is_no_message_or_out_of_turn_ends_the_worker_and_every_call_is_told() {
    let mut cut = packet(&[done(1)], b"a payload");
    cut.truncate(cut.len() - 3);
    for nonsense in [
        vec![0],
        vec![255; 100],
        vec![0; PACKET_BYTES_MAX / 2],
        packet(&[Event::Booted], b""),
        packet(&[Event::Bound], b""),
        cut,
    ] {
        let (calls, reader, worker) = connect();
        let mut ends = [enter(&calls), enter(&calls)];
        say(&worker, &nonsense, &[]);
        reader.await.unwrap();
        for end in &mut ends {
            assert!(end.next().await.is_none(), "{} bytes", nonsense.len());
        }
        assert!(calls.enter().is_err(), "no call begins in such a worker");
    }
}

#[tokio::test]
async fn an_answer_to_somebody_elses_call_a_second_one_and_a_late_one_reach_nobody() {
    let (calls, reader, worker) = connect();
    let (mut one, mut other) = (enter(&calls), enter(&calls));
    let output = |seq| Event::Output {
        seq,
        stream: Stream::Stdout,
    };
    // Numbers that no call has, then the first call's answer twice, and output after it.
    let strange = [done(0), done(999), output(u32::MAX)];
    say(&worker, &packet(&strange, b"stray"), &[]);
    let twice = [done(one.seq), done(one.seq), output(one.seq)];
    say(&worker, &packet(&twice, b"first"), &[]);
    let Some(CallEvent::Done { rest, .. }) = one.next().await else {
        panic!("no answer");
    };
    assert_eq!(rest, "first");
    let seq = one.seq;
    drop(one);
    say(&worker, &packet(&[done(seq), output(seq)], b"late"), &[]);
    say(&worker, &packet(&[done(other.seq)], b"own"), &[]);
    let Some(CallEvent::Done { rest, .. }) = other.next().await else {
        panic!("no answer");
    };
    assert_eq!(rest, "own");
    assert_eq!(calls.running().by_seq.len(), 1, "the other's alone");
    drop(worker);
    reader.await.unwrap();
}

#[tokio::test]
async fn descriptors_that_a_worker_sends_are_closed_and_too_many_end_it() {
    for (count, ends) in [(1, false), (FDS_MAX, true)] {
        let (calls, reader, worker) = connect();
        let mut call = enter(&calls);
        let (pipe, writer) = nix::unistd::pipe().unwrap();
        let answer = packet(&[done(call.seq)], b"with descriptors");
        say(&worker, &answer, &vec![writer.as_raw_fd(); count]);
        assert_eq!(call.next().await.is_none(), ends, "{count}");
        drop((writer, worker));
        reader.await.unwrap();
        // Whoever still had a copy of the writing end would keep this from being the end.
        assert_eq!(nix::unistd::read(&pipe, &mut [0; 1]), Ok(0), "{count}");
    }
}
