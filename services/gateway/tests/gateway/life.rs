// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How a gateway ends.

use std::io::{Read as _, Write as _};

use hearth_gateway::GatewayError;

use crate::{
    client::{connect, read_to_end},
    server::{KEY, Server, patient},
};

#[test]
fn draining_finishes_what_was_begun_closes_what_is_idle_and_ends_well() {
    let (server, _dir) = Server::temporary(patient());
    let mut silent = connect(server.address);
    let mut idle = connect(server.address);
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    assert!(0 < idle.read(&mut [0; 512]).unwrap());
    // Half a request: its other half comes while the server drains.
    let mut begun = connect(server.address);
    let head = format!(
        "PUT /v1/functions/a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    );
    begun.write_all(head.as_bytes()).unwrap();
    // The server asks for the body: the request has reached its handler.
    let mut wanted = [0; 25];
    begun.read_exact(&mut wanted).unwrap();
    assert_eq!(&wanted, b"HTTP/1.1 100 Continue\r\n\r\n");

    server.start_draining();
    assert!(read_to_end(&mut silent).is_empty());
    assert!(read_to_end(&mut idle).is_empty());
    begun.write_all(b"hello").unwrap();
    assert_eq!(read_to_end(&mut begun).status(), 415);
    assert!(server.ended().is_ok());
}

#[test]
fn a_gateway_whose_monitor_is_gone_ends() {
    let (mut server, _dir) = Server::temporary(patient());
    server.lose_monitor();
    assert!(matches!(server.ended(), Err(GatewayError::Monitor(_))));
}
