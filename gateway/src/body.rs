//! Reads a request's body within limits of size, of time, and of what all
//! requests together may hold in memory.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use mesh::status::Reason;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::problem::Problem;

/// How many bytes of bodies are held at once. Only what has arrived counts: who
/// announces much and sends nothing takes no room.
const ROOM: usize = 64 * 1024 * 1024;

/// The limits, and the room that is left.
pub(crate) struct Bodies {
    limit: usize,
    timeout: Duration,
    room: Semaphore,
}

/// A body, and the room it takes until this is dropped.
pub(crate) struct Received<'b> {
    pub(crate) bytes: Bytes,
    _room: Option<SemaphorePermit<'b>>,
}

impl Bodies {
    pub(crate) fn new(limit: usize, timeout: Duration) -> Self {
        Self { limit, timeout, room: Semaphore::new(ROOM) }
    }

    /// Refuses a body that says it is too large, before it is read.
    pub(crate) fn check_announced(&self, body: &Body) -> Result<(), Problem> {
        match body.size_hint().lower() {
            announced if announced > self.limit as u64 => Err(self.too_large()),
            _ => Ok(()),
        }
    }

    /// Reads `body` to its end.
    pub(crate) async fn read(&self, body: Body) -> Result<Received<'_>, Problem> {
        let read = tokio::time::timeout(self.timeout, self.collect(body)).await;
        let late = || {
            let detail = format!("the body didn't arrive within {:?}", self.timeout);
            Problem::request(StatusCode::REQUEST_TIMEOUT, detail)
        };
        read.unwrap_or_else(|_| Err(late())).map_err(Problem::closing)
    }

    async fn collect(&self, mut body: Body) -> Result<Received<'_>, Problem> {
        let mut bytes = BytesMut::new();
        let mut room: Option<SemaphorePermit<'_>> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|why| {
                let detail = format!("the body can't be read: {why}");
                Problem::request(StatusCode::BAD_REQUEST, detail)
            })?;
            // Trailers say nothing here.
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if bytes.len() + data.len() > self.limit {
                return Err(self.too_large());
            }
            let more = u32::try_from(data.len()).ok();
            let more = more.and_then(|more| self.room.try_acquire_many(more).ok());
            let more = more.ok_or_else(|| Problem::inside(Reason::Overloaded))?;
            match &mut room {
                Some(room) => room.merge(more),
                None => room = Some(more),
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Received { bytes: bytes.freeze(), _room: room })
    }

    fn too_large(&self) -> Problem {
        let detail = format!("the body has more than {} bytes", self.limit);
        Problem::request(StatusCode::PAYLOAD_TOO_LARGE, detail)
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt as _, stream};

    use super::*;

    fn chunks(chunks: &'static [&'static str]) -> Body {
        Body::from_stream(stream::iter(chunks).map(|c| Ok::<_, std::io::Error>(*c)))
    }

    fn status(problem: Problem) -> StatusCode {
        problem.document("").status()
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_read_to_its_end_or_refused() {
        let bodies = Bodies::new(4, Duration::from_secs(1));
        assert_eq!(bodies.read(chunks(&["ab", "cd"])).await.ok().unwrap().bytes, "abcd");
        let refused = bodies.read(chunks(&["ab", "cd", "e"])).await.err().unwrap();
        assert_eq!(status(refused), StatusCode::PAYLOAD_TOO_LARGE);
        let endless = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let refused = bodies.read(endless).await.err().unwrap();
        assert_eq!(status(refused), StatusCode::REQUEST_TIMEOUT);
        assert_eq!(bodies.room.available_permits(), ROOM);
    }

    #[tokio::test]
    async fn what_all_bodies_hold_is_bounded() {
        let mut bodies = Bodies::new(4, Duration::from_secs(1));
        bodies.room = Semaphore::new(5);
        let first = bodies.read(chunks(&["abcd"])).await.ok().unwrap();
        let refused = bodies.read(chunks(&["ab"])).await.err().unwrap();
        assert_eq!(status(refused), StatusCode::SERVICE_UNAVAILABLE);
        drop(first);
        assert!(bodies.read(chunks(&["ab"])).await.is_ok());
    }
}
