//! The call being answered: who makes it, until when, and in which trace. The
//! server's stack sets it for the time a handler runs; the client's stack hands
//! it on.

use std::{
    future::Future,
    sync::{Arc, LazyLock},
};

use opentelemetry::trace::SpanContext;
use tokio::time::Instant;

use crate::identity::SpiffeId;

/// The header in which a proxy names the caller it forwards.
pub const CALLER_HEADER: &str = "omni-caller";

/// What is known of the call being answered.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// Who makes it: the peer, or the one a proxy forwards.
    pub caller: Option<SpiffeId>,
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

    /// Runs `future` as part of this call.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(Arc::new(self), future)
    }
}
