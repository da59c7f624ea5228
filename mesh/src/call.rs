//! The call being answered: who makes it, until when, and in which trace. The
//! server's stack sets it for the time a handler runs; the client's stack hands
//! it on.

use std::{
    future::Future,
    sync::{Arc, LazyLock},
};

use http::HeaderValue;
use opentelemetry::trace::SpanContext;
use tokio::time::Instant;
use tonic::Status;

use crate::{
    identity::SpiffeId,
    status::{Reason, status},
};

/// The header in which a proxy names the caller it forwards, and after it, each behind a
/// comma, the proxies that forwarded the call before.
pub const CALLER_HEADER: &str = "omni-caller";
/// How many parties that header may name.
pub const MAX_FORWARDED: usize = 4;
/// What stands between them.
const BETWEEN_PARTIES: char = ',';

/// What is known of the call being answered.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// Who makes it: the peer, or the one that proxies forward.
    pub caller: Option<SpiffeId>,
    /// The proxies that forwarded it, from the one that the caller called to the peer;
    /// none where the caller is the peer.
    pub proxies: Vec<SpiffeId>,
    /// Until when an answer is of use.
    pub deadline: Option<Instant>,
    /// The trace it belongs to, sampled or not.
    pub trace: Option<SpanContext>,
}

tokio::task_local! {
    static CURRENT: Arc<Call>;
}

impl Call {
    /// The call that the current task answers; an empty one outside of any.
    pub fn current() -> Arc<Self> {
        static NONE: LazyLock<Arc<Call>> = LazyLock::new(Arc::default);
        CURRENT.try_with(Arc::clone).unwrap_or_else(|_| NONE.clone())
    }

    /// Everybody who has a part in it: the caller, and the proxies in their order.
    pub fn parties(&self) -> impl Iterator<Item = &SpiffeId> {
        self.caller.iter().chain(&self.proxies)
    }

    /// What a proxy says in [`CALLER_HEADER`] of the call that it sends on in place of
    /// this one.
    ///
    /// # Errors
    /// When nobody makes it, or it was forwarded so often that nobody would accept it.
    pub fn forwarded(&self) -> Result<HeaderValue, Status> {
        let named = self.parties().map(SpiffeId::as_str).collect::<Vec<_>>();
        let denied = |why: &str| status(Reason::Denied, why.to_owned());
        match named.len() {
            0 => Err(denied("the connection has no identity")),
            1..=MAX_FORWARDED => {
                let text = named.join(&BETWEEN_PARTIES.to_string());
                HeaderValue::try_from(text).map_err(|_| denied("an id isn't ASCII"))
            }
            _ => Err(denied("the call was forwarded too often to be forwarded again")),
        }
    }

    /// The parties that [`CALLER_HEADER`] names, the caller first; one at least.
    ///
    /// # Errors
    /// When one is no SPIFFE id, or there are more than [`MAX_FORWARDED`].
    pub(crate) fn named(header: &HeaderValue) -> Result<Vec<SpiffeId>, &'static str> {
        let named = header.to_str().map_err(|_| "`omni-caller` is no text")?;
        let parties = named.split(BETWEEN_PARTIES).map(|party| party.trim().parse().ok());
        match parties.take(MAX_FORWARDED + 1).collect::<Option<Vec<SpiffeId>>>() {
            Some(parties) if parties.len() <= MAX_FORWARDED => Ok(parties),
            Some(_) => Err("`omni-caller` names too many parties"),
            None => Err("`omni-caller` doesn't name SPIFFE ids"),
        }
    }

    /// Runs `future` as part of this call.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(Arc::new(self), future)
    }
}
