// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One packet: a postcard-encoded message, optionally followed by raw payload bytes.
//!
//! `[u16 header length, little endian][header][payload …]`. The payload is not part of the encoded message, so body
//! bytes are never copied through the encoder.
//!
//! Where many small messages go to the same peer at once, a packet may carry several, each with its payload's length:
//! `([u16 header length][u32 payload length][header][payload])*`, both little endian. [`append`] and [`take`] make and
//! read these; which of the two forms a socket speaks at a given moment is its protocol's to say.

use serde::{Serialize, de::DeserializeOwned};

/// The largest packet either side sends or accepts, in bytes. Well under the default `SO_SNDBUF` of 212,992
/// (net.core.wmem_default), so that two fit before a sender has to wait.
pub const PACKET_BYTES_MAX: usize = 64 * 1024;

/// The largest encoded header, in bytes.
pub const HEADER_BYTES_MAX: usize = 56 * 1024;

/// What is left for payload bytes beside a header of up to 1 KiB.
pub const PAYLOAD_BYTES_MAX: usize = PACKET_BYTES_MAX - 2 - 1024;

/// Why a packet could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The header does not fit into [`HEADER_BYTES_MAX`] or the packet into [`PACKET_BYTES_MAX`].
    #[error("message of {size} bytes exceeds the packet limit")]
    TooLarge {
        /// The size that was asked for, in bytes.
        size: usize,
    },
    /// The packet is shorter than its own header length says, or empty.
    #[error("packet is truncated")]
    Truncated,
    /// The header is not a message of the expected type.
    #[error("packet does not decode")]
    Malformed(#[source] postcard::Error),
    /// Bytes are left over after the header where no payload is allowed.
    #[error("packet has {extra} bytes too many")]
    Trailing {
        /// How many.
        extra: usize,
    },
}

/// Replaces the content of `packet` by `message` followed by `payload`.
///
/// # Errors
/// [`FrameError::TooLarge`] where the limits above would be passed; `packet` is then empty.
pub fn encode<M: Serialize>(
    message: &M,
    payload: &[u8],
    packet: &mut Vec<u8>,
) -> Result<(), FrameError> {
    packet.clear();
    packet.extend_from_slice(&[0, 0]);
    let encoded =
        postcard::to_extend(message, std::mem::take(packet)).map_err(FrameError::Malformed)?;
    *packet = encoded;
    let header_len = packet.len() - 2;
    if HEADER_BYTES_MAX < header_len || PACKET_BYTES_MAX < packet.len() + payload.len() {
        let size = packet.len() + payload.len();
        packet.clear();
        return Err(FrameError::TooLarge { size });
    }
    // HEADER_BYTES_MAX is below 2^16, so the conversion holds.
    let prefix = u16::try_from(header_len).map_or([0, 0], u16::to_le_bytes);
    packet[..2].copy_from_slice(&prefix);
    packet.extend_from_slice(payload);
    Ok(())
}

/// Splits a packet into its message and its payload.
///
/// # Errors
/// [`FrameError`] for anything that [`encode`] cannot have made.
pub fn decode<M: DeserializeOwned>(packet: &[u8]) -> Result<(M, &[u8]), FrameError> {
    let [low, high, rest @ ..] = packet else {
        return Err(FrameError::Truncated);
    };
    let header_len = usize::from(u16::from_le_bytes([*low, *high]));
    let Some((header, payload)) = rest.split_at_checked(header_len) else {
        return Err(FrameError::Truncated);
    };
    let (message, left) = postcard::take_from_bytes(header).map_err(FrameError::Malformed)?;
    match left.len() {
        0 => Ok((message, payload)),
        extra => Err(FrameError::Trailing { extra }),
    }
}

/// Bytes before the header of one of several messages: the two lengths.
const RECORD_PREFIX_BYTES: usize = 2 + 4;

/// Adds a message and its payload to a packet of several.
///
/// # Errors
/// [`FrameError::TooLarge`] where the packet has no room for it; `packet` is then as it was.
pub fn append<M: Serialize>(
    message: &M,
    payload: &[u8],
    packet: &mut Vec<u8>,
) -> Result<(), FrameError> {
    let start = packet.len();
    packet.extend_from_slice(&[0; RECORD_PREFIX_BYTES]);
    *packet =
        postcard::to_extend(message, std::mem::take(packet)).map_err(FrameError::Malformed)?;
    let header_len = packet.len() - start - RECORD_PREFIX_BYTES;
    let size = packet.len() + payload.len();
    match (u16::try_from(header_len), u32::try_from(payload.len())) {
        (Ok(header), Ok(body)) if header_len <= HEADER_BYTES_MAX && size <= PACKET_BYTES_MAX => {
            packet[start..start + 2].copy_from_slice(&header.to_le_bytes());
            packet[start + 2..start + RECORD_PREFIX_BYTES].copy_from_slice(&body.to_le_bytes());
            packet.extend_from_slice(payload);
            Ok(())
        }
        _ => {
            packet.truncate(start);
            Err(FrameError::TooLarge { size })
        }
    }
}

/// Takes the first message and its payload off a packet of several; None at its end.
///
/// # Errors
/// [`FrameError`] for anything that [`append`] cannot have made.
pub fn take<'p, M: DeserializeOwned>(
    packet: &mut &'p [u8],
) -> Result<Option<(M, &'p [u8])>, FrameError> {
    if packet.is_empty() {
        return Ok(None);
    }
    let [h0, h1, p0, p1, p2, p3, rest @ ..] = *packet else {
        return Err(FrameError::Truncated);
    };
    let header_len = usize::from(u16::from_le_bytes([*h0, *h1]));
    let payload_len = u32::from_le_bytes([*p0, *p1, *p2, *p3]);
    let payload_len = usize::try_from(payload_len).map_err(|_too_long| FrameError::Truncated)?;
    let (header, rest) = rest
        .split_at_checked(header_len)
        .ok_or(FrameError::Truncated)?;
    let (payload, rest) = rest
        .split_at_checked(payload_len)
        .ok_or(FrameError::Truncated)?;
    let (message, left) = postcard::take_from_bytes(header).map_err(FrameError::Malformed)?;
    match left.len() {
        0 => {
            *packet = rest;
            Ok(Some((message, payload)))
        }
        extra => Err(FrameError::Trailing { extra }),
    }
}

/// As [`decode`], for messages that carry no payload.
///
/// # Errors
/// [`FrameError::Trailing`] where there is one.
pub fn decode_bare<M: DeserializeOwned>(packet: &[u8]) -> Result<M, FrameError> {
    match decode(packet)? {
        (message, []) => Ok(message),
        (_, payload) => Err(FrameError::Trailing {
            extra: payload.len(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_and_its_payload_come_back_as_they_went() {
        let mut packet = Vec::new();
        encode(&("name".to_owned(), 7_u32), b"body", &mut packet).unwrap();
        let (message, payload): ((String, u32), _) = decode(&packet).unwrap();
        assert_eq!(
            (message.0.as_str(), message.1, payload),
            ("name", 7, b"body".as_slice())
        );
    }

    #[test]
    fn every_truncation_is_refused_and_none_panics() {
        let mut packet = Vec::new();
        encode(&("name".to_owned(), 7_u32), b"", &mut packet).unwrap();
        for length in 0..packet.len() {
            assert!(
                decode_bare::<(String, u32)>(&packet[..length]).is_err(),
                "length {length}"
            );
        }
    }

    #[test]
    fn several_messages_come_back_in_order_with_their_payloads() {
        let mut packet = Vec::new();
        append(&1_u32, b"one", &mut packet).unwrap();
        append(&2_u32, b"", &mut packet).unwrap();
        append(&3_u32, b"three", &mut packet).unwrap();
        let mut rest = packet.as_slice();
        let mut taken: Vec<(u32, &[u8])> = Vec::new();
        while let Some(message) = take(&mut rest).unwrap() {
            taken.push(message);
        }
        let expected: [(u32, &[u8]); 3] = [(1, b"one"), (2, b""), (3, b"three")];
        assert_eq!(taken, expected);
    }

    #[test]
    fn what_finds_no_room_beside_others_leaves_them_as_they_were() {
        let mut packet = Vec::new();
        append(&1_u32, b"one", &mut packet).unwrap();
        let before = packet.clone();
        let payload = vec![0; PACKET_BYTES_MAX - before.len()];
        assert!(matches!(
            append(&2_u32, &payload, &mut packet),
            Err(FrameError::TooLarge { .. })
        ));
        assert_eq!(packet, before);
    }

    #[test]
    fn every_truncation_of_several_messages_is_refused_or_ends_between_two() {
        let mut packet = Vec::new();
        append(&"name".to_owned(), b"one", &mut packet).unwrap();
        let border = packet.len();
        append(&"name".to_owned(), b"two", &mut packet).unwrap();
        for length in 1..packet.len() {
            let mut rest = &packet[..length];
            let whole = loop {
                match take::<String>(&mut rest) {
                    Ok(Some(_)) => {}
                    Ok(None) => break true,
                    Err(_) => break false,
                }
            };
            assert_eq!(whole, length == border, "length {length}");
        }
    }

    #[test]
    fn a_packet_over_the_limit_is_refused() {
        let mut packet = Vec::new();
        let payload = vec![0; PACKET_BYTES_MAX];
        assert!(matches!(
            encode(&1_u8, &payload, &mut packet),
            Err(FrameError::TooLarge { .. })
        ));
        assert!(packet.is_empty());
    }

    #[test]
    fn payload_where_none_belongs_is_refused() {
        let mut packet = Vec::new();
        encode(&1_u8, b"x", &mut packet).unwrap();
        assert!(matches!(
            decode_bare::<u8>(&packet),
            Err(FrameError::Trailing { extra: 1 })
        ));
    }
}
