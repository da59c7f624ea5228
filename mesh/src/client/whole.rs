//! A message's body that is there as a whole: what can be sent again, and what
//! needs no watching to its end.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tonic::codegen::StdError;

/// How many bytes are held; what is longer is refused, as gRPC's own limit on
/// messages would. That limit is 4 MiB unless set; this one leaves it the word.
const LIMIT: usize = 64 * 1024 * 1024;

/// Bytes and trailers, ready.
#[derive(Clone, Debug, Default)]
pub(super) struct Whole {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

/// Why a body can't be had whole.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken<E: std::error::Error + 'static> {
    #[error("it is longer than {LIMIT} bytes")]
    TooLong,
    #[error(transparent)]
    Failed(E),
}

impl Whole {
    /// Reads `body` to its end.
    ///
    /// # Errors
    /// When it is too long or fails.
    pub(super) async fn read<B>(body: B) -> Result<Self, Broken<B::Error>>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::error::Error + Into<StdError> + 'static,
    {
        if body.is_end_stream() {
            return Ok(Self::default());
        }
        let read = Limited::new(body, LIMIT).collect().await.map_err(|why: StdError| {
            match why.downcast::<B::Error>() {
                Ok(why) => Broken::Failed(*why),
                // The only other error there is.
                Err(why) => {
                    debug_assert!(why.is::<LengthLimitError>());
                    Broken::TooLong
                }
            }
        })?;
        let trailers = read.trailers().cloned();
        let data = read.to_bytes();
        Ok(Self { data: (!data.is_empty()).then_some(data), trailers })
    }

    /// The trailers, if there were any.
    pub(super) fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_ref()
    }
}

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = self.data.take().map(Frame::data);
        let frame = data.or_else(|| self.trailers.take().map(Frame::trailers));
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.as_ref().map_or(0, |data| data.len() as u64))
    }
}
