//! A connection on which anything can be sent, and everything that comes is
//! seen.

use std::{io, net::SocketAddr};

use bytes::{Buf as _, Bytes, BytesMut};
use mesh::identity::Identity;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf},
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    frames::{self, PREFACE, flag, kind},
    site::{METHOD, SERVICE},
};

/// Where attackers come from: an address of loopback that nobody else uses.
const ATTACKER: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2)), 0);

/// The window that HTTP/2 begins with.
pub const WINDOW: u32 = 65_535;

/// Connects to `address` as the attackers do.
///
/// # Errors
/// When nobody listens.
pub async fn tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(ATTACKER)?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Connects with mutual TLS.
///
/// # Errors
/// When the handshake fails.
pub async fn tls(identity: &Identity, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::IpAddress(address.ip().into());
    TlsConnector::from(identity.client_config(SERVICE)).connect(name, tcp(address).await?).await
}

/// A frame as it came.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Its kind.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream; 0 for the connection.
    pub stream: u32,
    /// What it carries.
    pub payload: Bytes,
}

impl Frame {
    /// The error code, of a GOAWAY.
    pub fn goaway(&self) -> Option<u32> {
        let code = self.payload.get(4..8).filter(|_| self.kind == kind::GOAWAY)?;
        Some(u32::from_be_bytes(code.try_into().ok()?))
    }
}

/// The sending side.
pub struct Sender {
    io: WriteHalf<TlsStream<TcpStream>>,
    next: u32,
}

/// The receiving side.
pub struct Receiver {
    io: ReadHalf<TlsStream<TcpStream>>,
    read: BytesMut,
}

/// Connects, and exchanges what HTTP/2 begins with.
///
/// # Errors
/// When the handshake fails.
pub async fn open(
    identity: &Identity,
    address: SocketAddr,
    window: u32,
) -> io::Result<(Sender, Receiver)> {
    let (read, write) = tokio::io::split(tls(identity, address).await?);
    let mut sender = Sender { io: write, next: 1 };
    let mut receiver = Receiver { io: read, read: BytesMut::new() };
    sender.send(&[PREFACE, &frames::settings(window)].concat()).await?;
    // The server's windows count from the acknowledgement on.
    loop {
        let frame = receiver.next().await.ok_or(io::ErrorKind::UnexpectedEof)?;
        if frame.kind == kind::SETTINGS && frame.flags == flag::NONE {
            sender.send(&frames::frame(kind::SETTINGS, flag::ACK, 0, &[])).await?;
            return Ok((sender, receiver));
        }
    }
}

impl Sender {
    /// Sends `bytes` as they are.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.io.write_all(bytes).await?;
        self.io.flush().await
    }

    /// The next stream's number.
    pub fn stream(&mut self) -> u32 {
        let stream = self.next;
        self.next += 2;
        stream
    }

    /// Begins a request, and answers its stream.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn begin(&mut self, more: &[(&str, &str)]) -> io::Result<u32> {
        let stream = self.stream();
        let block = frames::headers(METHOD, more);
        self.send(&frames::frame(kind::HEADERS, flag::END_HEADERS, stream, &block)).await?;
        Ok(stream)
    }

    /// Sends nothing more, and goes on listening.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn shut(&mut self) -> io::Result<()> {
        self.io.shutdown().await
    }
}

impl Receiver {
    /// The next frame; `None` at the end.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if self.read.len() >= 9 {
                let length = (&self.read[..3]).get_uint(3) as usize;
                if self.read.len() >= 9 + length {
                    let mut frame = self.read.split_to(9 + length).freeze();
                    let head = frame.split_to(9);
                    let stream = (&head[5..]).get_u32() & (u32::MAX >> 1);
                    return Some(Frame { kind: head[3], flags: head[4], stream, payload: frame });
                }
            }
            // An error is an end as well.
            match self.io.read_buf(&mut self.read).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// Reads to the end: the frames that came, pings left unanswered.
    pub async fn rest(&mut self) -> Vec<Frame> {
        let mut frames = vec![];
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }
}
