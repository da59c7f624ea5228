//! Logs: a line each event, with the id of the trace it belongs to.

use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::{
    Layer,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Format, Writer},
    },
    layer::Context,
    registry::LookupSpan,
};

use super::trace;
use crate::config::LogFormat;

/// The layer that writes logs to standard error.
pub(super) fn layer<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // It would say so on standard error, and panic: on a full disk, every task
        // that has something to log.
        .log_internal_errors(false);
    match format {
        LogFormat::Json => {
            let format = Format::default().json().flatten_event(true);
            let format = format.with_current_span(false).with_span_list(false);
            let format =
                WithTrace { format, before: r#","trace_id":""#, after: "\"}\n", end: "}\n" };
            Box::new(EventsOnly(layer.json().event_format(format)))
        }
        LogFormat::Human => {
            let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
            let format = Format::default().with_target(false).with_ansi(ansi);
            let format = WithTrace { format, before: " trace_id=", after: "\n", end: "\n" };
            Box::new(EventsOnly(layer.with_ansi(ansi).event_format(format)))
        }
    }
}

/// Takes no note of spans: writing down their fields would cost most of what a
/// sampled call's spans cost, and all that a log says of them is the trace's id.
struct EventsOnly<L>(L);

impl<S: Subscriber, L: Layer<S>> Layer<S> for EventsOnly<L> {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        self.0.on_event(event, context);
    }
}

/// Lines of `format` with the id of the current trace, if it is sampled.
struct WithTrace<F> {
    format: F,
    before: &'static str,
    after: &'static str,
    /// What lines of `format` end with.
    end: &'static str,
}

impl<S, N, F> FormatEvent<S, N> for WithTrace<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(trace) = trace::current() else {
            return self.format.format_event(context, writer, event);
        };
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        let line = line.strip_suffix(self.end).unwrap_or(&line);
        write!(writer, "{line}{}{}{}", self.before, trace.trace_id(), self.after)
    }
}
