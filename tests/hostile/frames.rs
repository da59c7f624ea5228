//! HTTP/2 by hand: frames that no well-behaved library would send.
//!
//! Source: RFC 9113 (HTTP/2) and RFC 7541 (HPACK).

use bytes::{BufMut as _, Bytes, BytesMut};

/// What a client says first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Kinds of frames.
pub mod kind {
    /// A part of a body.
    pub const DATA: u8 = 0;
    /// Headers, or their beginning.
    pub const HEADERS: u8 = 1;
    /// A stream is given up.
    pub const RST_STREAM: u8 = 3;
    /// Settings, or their acknowledgement.
    pub const SETTINGS: u8 = 4;
    /// A sign of life, or its answer.
    pub const PING: u8 = 6;
    /// The peer is told to go.
    pub const GOAWAY: u8 = 7;
    /// Headers go on.
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub mod flag {
    /// None.
    pub const NONE: u8 = 0;
    /// Of SETTINGS and PING: an answer.
    pub const ACK: u8 = 1;
    /// Of HEADERS and DATA: nothing follows on this stream.
    pub const END_STREAM: u8 = 1;
    /// Of HEADERS and CONTINUATION: the headers are whole.
    pub const END_HEADERS: u8 = 4;
}

/// Error codes of RST_STREAM and GOAWAY.
pub mod code {
    /// Nothing is wrong.
    pub const NO_ERROR: u32 = 0;
    /// The stream isn't needed any more.
    pub const CANCEL: u32 = 8;
    /// The peer behaves as if to do harm.
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(9 + payload.len());
    frame.put_uint(payload.len() as u64, 3);
    frame.put_u8(kind);
    frame.put_u8(flags);
    frame.put_u32(stream);
    frame.put_slice(payload);
    frame.freeze()
}

/// SETTINGS with the initial window of streams; the other settings stay as the
/// protocol has them.
pub fn settings(initial_window: u32) -> Bytes {
    let mut payload = BytesMut::new();
    payload.put_u16(4);
    payload.put_u32(initial_window);
    frame(kind::SETTINGS, flag::NONE, 0, &payload)
}

/// RST_STREAM.
pub fn reset(stream: u32, code: u32) -> Bytes {
    frame(kind::RST_STREAM, flag::NONE, stream, &code.to_be_bytes())
}

/// The headers of a gRPC request to `path`, and `more`.
pub fn headers(path: &str, more: &[(&str, &str)]) -> Bytes {
    let mut block = BytesMut::new();
    let usual = [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "mesh"),
        (":path", path),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    for (name, value) in usual.iter().chain(more) {
        literal(&mut block, name, value);
    }
    block.freeze()
}

/// A gRPC message with its prefix.
pub fn message(compressed: bool, message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(compressed.into());
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(message);
    framed.freeze()
}

/// A header field that is in no table.
fn literal(block: &mut BytesMut, name: &str, value: &str) {
    block.put_u8(0);
    for text in [name, value] {
        length(block, text.len());
        block.put_slice(text.as_bytes());
    }
}

/// An integer with a prefix of 7 bits.
fn length(block: &mut BytesMut, length: usize) {
    const PREFIX: usize = 127;
    let Some(mut rest) = length.checked_sub(PREFIX) else {
        block.put_u8(length as u8);
        return;
    };
    block.put_u8(PREFIX as u8);
    while rest >= 128 {
        block.put_u8((rest % 128) as u8 | 128);
        rest /= 128;
    }
    block.put_u8(rest as u8);
}
