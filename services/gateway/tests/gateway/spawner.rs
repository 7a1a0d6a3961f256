// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A spawner on a host that has no room for a sandbox.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use hearth_protocol::{
    SmallName, TreeId, frame,
    spawner::{CgroupLayout, Event, Host, Level, Request, UploadId},
};
use nix::sys::socket::{MsgFlags, recv, send};
use sha2::{Digest as _, Sha256};

/// What it holds.
#[derive(Debug, Default)]
pub(crate) struct Trees {
    pub(crate) stored: Vec<TreeId>,
    pub(crate) removed: Vec<TreeId>,
    /// No tree fits on its disk any more.
    pub(crate) full: bool,
}

/// Serves one connection until the other end closes it.
pub(crate) fn start(socket: OwnedFd, trees: Arc<Mutex<Trees>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let host = Host {
            level: Level::Full,
            cgroup: CgroupLayout::Hybrid,
            memory_peak_resets: true,
            landlock_abi: 6,
            sandboxes_max: 16,
            bases: ["static", "minimal"]
                .map(|name| SmallName::new(name).unwrap())
                .to_vec(),
        };
        tell(&socket, &Event::Hello { host });
        let mut packet = vec![0; frame::PACKET_BYTES_MAX];
        let mut upload = Sha256::new();
        loop {
            let length = recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()).unwrap_or(0);
            if length == 0 {
                return;
            }
            let request = frame::decode_bare(&packet[..length]).unwrap();
            if let Some(event) = answer(request, &mut upload, &trees) {
                tell(&socket, &event);
            }
        }
    })
}

fn answer(request: Request, upload: &mut Sha256, trees: &Mutex<Trees>) -> Option<Event> {
    match request {
        Request::TreeBegin { request } => Some(Event::TreeBegun {
            request,
            upload: UploadId(1),
        }),
        Request::TreeChunk { path, bytes, .. } => {
            upload.update(format!("{path} {bytes}\n"));
            None
        }
        Request::TreeCommit { request, .. } if trees.lock().unwrap().full => {
            *upload = Sha256::new();
            Some(Event::Failed {
                request,
                step: "write".to_owned(),
                errno: nix::libc::ENOSPC,
                message: "no space left on device".to_owned(),
            })
        }
        Request::TreeCommit { request, .. } => {
            let hex: String = std::mem::take(upload)
                .finalize()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            let tree = TreeId::new(hex).unwrap();
            trees.lock().unwrap().stored.push(tree.clone());
            Some(Event::TreeStored { request, tree })
        }
        Request::TreeRemove { request, tree } => {
            trees.lock().unwrap().removed.push(tree);
            Some(Event::TreeRemoved { request })
        }
        Request::Create { request, .. }
        | Request::Bind { request, .. }
        | Request::Renew { request, .. }
        | Request::Inspect { request, .. }
        | Request::TreeOpen { request, .. }
        | Request::Observe { request }
        | Request::EndObservation { request, .. }
        | Request::ReadProfile { request, .. } => Some(Event::Failed {
            request,
            step: "clone3".to_owned(),
            errno: 28,
            message: "no room".to_owned(),
        }),
        Request::Destroy { .. } | Request::TreeAbort { .. } => None,
    }
}

fn tell(socket: &OwnedFd, event: &Event) {
    let mut packet = Vec::new();
    frame::encode(event, &[], &mut packet).unwrap();
    // The gateway may be gone already.
    let _length = send(socket.as_raw_fd(), &packet, MsgFlags::MSG_NOSIGNAL);
}
