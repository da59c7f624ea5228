//! What the outbound stack counts beside the calls themselves. Labels are the
//! mesh's own services and the API's own methods: instances come and go, and
//! are shown by `omni services --wide`.

use opentelemetry::metrics::Counter;

use crate::telemetry::label;

/// The counters of one process' clients.
pub(super) struct Metrics {
    retries: Counter<u64>,
    ejections: Counter<u64>,
    breakers: Counter<u64>,
}

/// Why a call is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The instance can't have begun to answer.
    Unsent,
    /// The connection was lost before the answer.
    Lost,
    /// The try took too long.
    TryTimeout,
    /// The service asked for it.
    Answered,
}

impl Cause {
    fn as_str(self) -> &'static str {
        match self {
            Self::Unsent => "unsent",
            Self::Lost => "lost",
            Self::TryTimeout => "try_timeout",
            Self::Answered => "answered",
        }
    }
}

impl Metrics {
    pub(super) fn new() -> Self {
        let meter = opentelemetry::global::meter("omnibridge");
        Self {
            retries: meter
                .u64_counter("omni.client.retries")
                .with_description("Calls tried again, or not for want of budget, by cause")
                .build(),
            ejections: meter
                .u64_counter("omni.client.ejections")
                .with_description("Instances kept out of the choice, by cause")
                .build(),
            breakers: meter
                .u64_counter("omni.client.breaker.transitions")
                .with_description("Breakers that opened or closed")
                .build(),
        }
    }

    /// A call of `service` is tried again, or isn't because the budget is used
    /// up.
    pub(super) fn retry(&self, service: &str, method: &'static str, cause: Cause, paid: bool) {
        self.retries.add(
            1,
            &[
                label("service", service.to_owned()),
                label("method", method),
                label("cause", cause.as_str()),
                label("outcome", if paid { "tried" } else { "over_budget" }),
            ],
        );
    }

    /// An instance of `service` is ejected.
    pub(super) fn ejection(&self, service: &str, cause: &'static str) {
        let labels = [label("service", service.to_owned()), label("cause", cause)];
        self.ejections.add(1, &labels);
    }

    /// A breaker is `to` from now on.
    pub(super) fn breaker(&self, service: &str, method: &'static str, to: &'static str) {
        let service = label("service", service.to_owned());
        self.breakers.add(1, &[service, label("method", method), label("to", to)]);
    }
}
