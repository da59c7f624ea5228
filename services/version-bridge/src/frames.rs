//! The messages of a stream, converted one by one as they pass.
//!
//! Source of the framing: gRPC over HTTP/2, "Length-Prefixed-Message".

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use convert::Transform;
use futures::{FutureExt as _, future::BoxFuture};
use http::HeaderMap;
use http_body::Frame;
use mesh::status::{Reason, status};
use tokio::runtime::{Handle, RuntimeFlavor};
use tonic::{Status, body::Body};

use crate::ends::Ends;

/// What precedes a message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// From how many bytes on a conversion would hold up others on its thread.
const LARGE: usize = 64 * 1024;

/// What a body is of, and of which service.
pub(crate) enum Part {
    Request(String),
    Answer(String),
}

/// A body whose messages become those of another version.
pub(crate) struct Converted {
    body: Body,
    transform: Transform,
    part: Part,
    limit: usize,
    ends: Ends,
    /// Of a request: that the answer is over. Of an answer: that the request failed.
    other: BoxFuture<'static, Option<Status>>,
    received: BytesMut,
    /// Why it ends behind what was converted.
    pending: Option<Status>,
    ended: bool,
}

impl Converted {
    /// `body`, a part of the call of `ends`, of whose messages none may have more than
    /// `limit` bytes.
    pub(crate) fn new(
        body: Body,
        transform: &Transform,
        part: Part,
        limit: usize,
        ends: &Ends,
    ) -> Self {
        let other: BoxFuture<'static, Option<Status>> = match part {
            Part::Request(_) => Box::pin(ends.over().map(|()| None)),
            Part::Answer(_) => Box::pin(ends.failed().map(Some)),
        };
        Self {
            body,
            transform: transform.clone(),
            part,
            limit,
            ends: ends.clone(),
            other,
            received: BytesMut::new(),
            pending: None,
            ended: false,
        }
    }

    /// The messages that have come whole, converted, up to the first that can't be, or
    /// to as many as may hold up others.
    fn convert(&mut self) -> Bytes {
        let mut converted = BytesMut::new();
        while self.pending.is_none() && converted.len() < LARGE {
            match self.next() {
                Ok(Some((length, message))) => {
                    converted.reserve(PREFIX + message.len());
                    converted.put_u8(0);
                    converted.put_u32(length);
                    converted.extend_from_slice(&message);
                }
                Ok(None) => break,
                Err(status) => self.pending = Some(status),
            }
        }
        converted.freeze()
    }

    /// The next message that has come whole, converted, and its length.
    fn next(&mut self) -> Result<Option<(u32, Bytes)>, Status> {
        let Some(message) = self.message()? else { return Ok(None) };
        let message = match message.len() {
            LARGE.. if is_multi_threaded() => {
                tokio::task::block_in_place(|| self.transform.bytes(message))
            }
            _ => self.transform.bytes(message),
        };
        let message = message.map_err(|why| self.failed(&why.to_string()))?;
        let length = u32::try_from(message.len());
        let length = length.map_err(|_| self.failed("it becomes larger than 4 GiB"))?;
        Ok(Some((length, message)))
    }

    /// The next message that has come whole.
    fn message(&mut self) -> Result<Option<Bytes>, Status> {
        let Some((mut prefix, _)) = self.received.split_at_checked(PREFIX) else {
            return Ok(None);
        };
        if prefix.get_u8() != 0 {
            let why = format!("{} is compressed, and can't be converted", self.name());
            return Err(Status::unimplemented(why));
        }
        let length = prefix.get_u32() as usize;
        if length > self.limit {
            let why = format!("it has {length} bytes, more than `limits.message_bytes`");
            return Err(self.failed(&why));
        }
        if self.received.len() < PREFIX + length {
            return Ok(None);
        }
        self.received.advance(PREFIX);
        Ok(Some(self.received.split_to(length).freeze()))
    }

    fn failed(&self, why: &str) -> Status {
        let reason = match self.part {
            Part::Request(_) => Reason::InvalidRequest,
            Part::Answer(_) => Reason::Internal,
        };
        let to = self.transform.target().full_name();
        status(reason, format!("{} can't become a {to}: {why}", self.name()))
    }

    fn name(&self) -> String {
        match &self.part {
            Part::Request(service) => format!("a request to {service}"),
            Part::Answer(service) => format!("an answer of {service}"),
        }
    }

    /// Ends an answer by its status. A request only tells why, and waits for the call
    /// to be given up: an error of its own would look like the called one's fault.
    fn end(&mut self, status: Status) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        // What still comes isn't of use to anybody.
        self.body = Body::empty();
        self.ended = true;
        match self.part {
            Part::Request(_) => {
                self.ends.fail(status);
                Poll::Pending
            }
            Part::Answer(_) => Poll::Ready(Some(trailers(&status).map(Frame::trailers))),
        }
    }
}

fn trailers(status: &Status) -> Result<HeaderMap, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(trailers)
}

fn is_multi_threaded() -> bool {
    Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread
}

impl http_body::Body for Converted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Poll::Ready(why) = self.other.as_mut().poll(cx) {
                // Not to be asked again.
                self.other = Box::pin(std::future::pending());
                match why {
                    Some(status) if !self.ended => return self.end(status),
                    Some(_) => {}
                    None => return Poll::Ready(Some(Err(Status::cancelled("the call is over")))),
                }
            }
            if self.ended {
                return match self.part {
                    Part::Request(_) => Poll::Pending,
                    Part::Answer(_) => Poll::Ready(None),
                };
            }
            let converted = self.convert();
            if !converted.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(converted))));
            }
            if let Some(status) = self.pending.take() {
                return self.end(status);
            }
            let ended = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.received.extend_from_slice(&data);
                        continue;
                    }
                    Err(trailers) if self.received.is_empty() => {
                        return Poll::Ready(Some(Ok(trailers)));
                    }
                    Err(_) => self.failed("it breaks off"),
                },
                // Who sends it is gone, and nobody is to be told anything.
                Some(Err(status)) if matches!(self.part, Part::Request(_)) => {
                    return Poll::Ready(Some(Err(status)));
                }
                Some(Err(status)) => status,
                None if self.received.is_empty() => return Poll::Ready(None),
                None => self.failed("it breaks off"),
            };
            return self.end(ended);
        }
    }

    fn is_end_stream(&self) -> bool {
        // An answer that is only trailers has to stay one.
        let answered = self.ended && matches!(self.part, Part::Answer(_));
        let over = self.received.is_empty() && self.body.is_end_stream();
        self.pending.is_none() && (answered || (!self.ended && over))
    }
}
