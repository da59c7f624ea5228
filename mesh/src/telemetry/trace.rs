//! W3C trace contexts, and spans that exist only where a trace is sampled.

use std::sync::atomic::{AtomicU64, Ordering};

use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState,
};
use tracing::{Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The target of all spans that are exported.
pub(super) const TARGET: &str = "omnibridge::trace";
/// The span attribute that says which service a span belongs to.
pub(super) const SERVICE: &str = "omni.service";

/// The share of new traces that is sampled, as a threshold on 64 random bits.
static SAMPLE_BELOW: AtomicU64 = AtomicU64::new(0);

pub(super) fn set_sample_ratio(ratio: f64) {
    // The cast saturates: 1.0 becomes `u64::MAX`.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let threshold = (ratio * u64::MAX as f64) as u64;
    SAMPLE_BELOW.store(threshold, Ordering::Relaxed);
}

/// What a span stands for in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A call being answered.
    Server,
    /// A call being made.
    Client,
    /// An event going out.
    Producer,
    /// An event coming in.
    Consumer,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
            Self::Producer => "producer",
            Self::Consumer => "consumer",
        }
    }
}

/// A sampled trace's new span: `name` of `service`, child of `parent`. Where
/// `parent` isn't sampled, or is `None`, a span that costs nothing.
pub fn child(service: &str, kind: Kind, name: &str, parent: Option<&SpanContext>) -> Span {
    match parent {
        Some(parent) if parent.is_sampled() => span(service, kind, name, Some(parent)),
        _ => Span::none(),
    }
}

/// A new trace's first span, if the trace is sampled.
pub fn root(service: &str, kind: Kind, name: &str) -> Span {
    if rand::random::<u64>() < SAMPLE_BELOW.load(Ordering::Relaxed) {
        span(service, kind, name, None)
    } else {
        Span::none()
    }
}

fn span(service: &str, kind: Kind, name: &str, parent: Option<&SpanContext>) -> Span {
    let span = tracing::info_span!(
        target: TARGET,
        parent: None,
        "call",
        otel.name = name,
        otel.kind = kind.as_str(),
        omni.service = service,
        otel.status_code = Empty,
        rpc.grpc.status_code = Empty,
    );
    if let Some(parent) = parent {
        let parent = opentelemetry::Context::new().with_remote_span_context(parent.clone());
        // Only fails where nothing is exported, and then there is no parent.
        let _ = span.set_parent(parent);
    }
    span
}

/// The context of `span`, if it is an exported one.
pub fn context(span: &Span) -> Option<SpanContext> {
    // The usual case, for the price of a look.
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let context = context.span().span_context().clone();
    context.is_valid().then_some(context)
}

/// The context of the current span, if it is an exported one.
pub fn current() -> Option<SpanContext> {
    context(&Span::current())
}

/// Reads a `traceparent` of version 00.
///
/// Source: W3C Trace Context, section 3.2.
pub fn parse(traceparent: &str) -> Option<SpanContext> {
    let mut parts = traceparent.split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let lower_hex = |s: &str, len: usize| {
        s.len() == len && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    if version != "00"
        || parts.next().is_some()
        || !lower_hex(trace, 32)
        || !lower_hex(span, 16)
        || !lower_hex(flags, 2)
    {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

/// Writes `context` as a `traceparent`.
pub fn format(context: &SpanContext) -> String {
    let (trace, span) = (context.trace_id(), context.span_id());
    format!("00-{trace}-{span}-{:02x}", context.trace_flags() & TraceFlags::SAMPLED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_and_written() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = parse(text).unwrap();
        assert!(context.is_sampled() && context.is_remote());
        assert_eq!(format(&context), text);
    }

    #[test]
    fn what_is_no_traceparent_is_none() {
        for text in [
            "",
            "00",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-+1",
        ] {
            assert!(parse(text).is_none(), "{text}");
        }
    }
}
