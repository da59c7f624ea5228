//! Traces, metrics and logs of one process.
//!
//! Traces leave by OTLP over gRPC, each span under the name of the service it
//! belongs to, also when several services share a process. Metrics are read in
//! Prometheus' form on the admin port, and leave by OTLP too. Only sampled
//! calls make spans.

mod export;
mod log;
mod throttle;
pub mod trace;

use std::time::Duration;

use opentelemetry::{KeyValue, global, trace::TracerProvider as _};
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    metrics::SdkMeterProvider,
    trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider},
};
use prometheus::{Encoder as _, TextEncoder};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

pub(crate) use self::throttle::Throttle;
use crate::{Error, config::Config};

/// How often finished spans leave.
const EXPORT_INTERVAL: Duration = Duration::from_secs(1);
/// How many finished spans wait at most; more are dropped, never waited for.
const SPAN_QUEUE: usize = 16 * 1024;
/// How long one export, or the last flush, may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);
/// Libraries that speak at `info` of every call they make, that let a peer write
/// warnings at will, or that would make the exporter trace itself.
const QUIET: &str = "notify=warn,consulrs=warn,rustify=warn,reqwest=warn,hyper=warn,h2=error,\
                     rustls=error,sqlx=warn,sea_orm_migration=warn,tower=warn,tonic=warn,\
                     opentelemetry=warn,opentelemetry_sdk=warn";

/// The telemetry of this process.
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
    metrics: SdkMeterProvider,
    prometheus: prometheus::Registry,
}

impl Telemetry {
    /// Starts logs, traces and metrics. Call it once, inside the runtime.
    ///
    /// # Errors
    /// When the log filter or the exporter's endpoint can't be used.
    pub fn start(config: &Config) -> Result<Self, Error> {
        let failed = |why: &dyn std::fmt::Display| Error::Telemetry(why.to_string());
        let resource = Resource::builder().with_service_name("omni").build();
        let prometheus = prometheus::Registry::new();
        let reader = opentelemetry_prometheus::exporter()
            .with_registry(prometheus.clone())
            .build()
            .map_err(|why| failed(&why))?;
        let mut metrics =
            SdkMeterProvider::builder().with_reader(reader).with_resource(resource.clone());

        let mut traces = None;
        if let Some(endpoint) = &config.telemetry.metrics_endpoint {
            let exporter = MetricExporter::builder()
                .with_tonic()
                .with_endpoint(endpoint)
                .with_timeout(EXPORT_TIMEOUT)
                .build()
                .map_err(|why| Error::setting("telemetry.metrics_endpoint", endpoint, why))?;
            metrics = metrics.with_periodic_exporter(exporter);
        }
        if let Some(endpoint) = &config.telemetry.endpoint {
            let endpoint = endpoint.clone();
            let exporter = export::ByService::new(resource, move || {
                SpanExporter::builder()
                    .with_tonic()
                    .with_endpoint(&endpoint)
                    .with_timeout(EXPORT_TIMEOUT)
                    .build()
            });
            let batches = BatchConfigBuilder::default()
                .with_scheduled_delay(EXPORT_INTERVAL)
                .with_max_queue_size(SPAN_QUEUE)
                .build();
            let processor =
                BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
            traces = Some(SdkTracerProvider::builder().with_span_processor(processor).build());
        }
        let metrics = metrics.build();
        global::set_meter_provider(metrics.clone());
        trace::set_sample_ratio(if traces.is_some() { config.telemetry.sample } else { 0.0 });

        // One filter for all layers. With one for each, a crate that asks whether a
        // level is enabled and then says nothing (sqlx does) leaves a mark in its
        // thread, and the next span there is lost to the layers that would have
        // refused what was asked about.
        let filter = format!("{QUIET},{},{}=info", config.log.filter, trace::TARGET);
        let filter = EnvFilter::try_new(filter)
            .map_err(|why| Error::setting("log.filter", &config.log.filter, why))?;
        let spans = traces.as_ref().map(|traces| {
            tracing_opentelemetry::layer()
                .with_tracer(traces.tracer("omnibridge"))
                // What would only make spans dearer: who they are for is in their name.
                .with_location(false)
                .with_threads(false)
                .with_target(false)
                .with_tracked_inactivity(false)
                .with_context_activation(false)
        });
        tracing_subscriber::registry()
            .with(filter)
            .with(spans)
            .with(log::layer(config.log.format))
            .try_init()
            .map_err(|why| failed(&why))?;
        Ok(Self { traces, metrics, prometheus })
    }

    /// The metrics in Prometheus' text form.
    ///
    /// # Errors
    /// When they can't be encoded.
    pub fn prometheus(&self) -> Result<String, Error> {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.prometheus.gather(), &mut text)
            .map_err(|why| Error::Telemetry(why.to_string()))?;
        String::from_utf8(text).map_err(|why| Error::Telemetry(why.to_string()))
    }

    /// Sends what is finished but hasn't left yet, and stops. Takes a few
    /// seconds at most.
    pub async fn stop(self) {
        let stop = tokio::task::spawn_blocking(move || {
            if let Some(traces) = self.traces
                && let Err(why) = traces.shutdown_with_timeout(EXPORT_TIMEOUT)
            {
                tracing::warn!(%why, "the last spans may be missing");
            }
            // The Prometheus reader has nothing to send; an OTLP one may fail
            // as the traces' did, and has been said then.
            let _ = self.metrics.shutdown_with_timeout(EXPORT_TIMEOUT);
        });
        let _ = tokio::time::timeout(2 * EXPORT_TIMEOUT, stop).await;
    }
}

/// An attribute, for metrics.
pub(crate) fn label(key: &'static str, value: impl Into<opentelemetry::Value>) -> KeyValue {
    KeyValue::new(key, value)
}
