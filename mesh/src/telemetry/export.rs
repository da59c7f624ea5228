//! Spans of several services in one process, each exported under its own
//! service's name: a resource belongs to an exporter, so there is an exporter a
//! service.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{SpanData, SpanExporter as Export},
};

use super::trace::SERVICE;

/// How many services one process may export for; more go under its own name.
const MAX_SERVICES: usize = 64;

type Build = Box<dyn Fn() -> Result<SpanExporter, ExporterBuildError> + Send + Sync>;

/// Sorts spans by their service and exports each service's with its resource.
pub(super) struct ByService {
    base: Resource,
    build: Build,
    exporters: Mutex<HashMap<String, Arc<SpanExporter>>>,
    runtime: tokio::runtime::Handle,
}

impl ByService {
    /// `base` is what all services share; `build` makes an exporter. Call it
    /// inside the runtime, which the exporters' connections live in.
    pub(super) fn new(
        base: Resource,
        build: impl Fn() -> Result<SpanExporter, ExporterBuildError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            base,
            build: Box::new(build),
            exporters: Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
        }
    }

    fn exporter(&self, service: &str) -> Result<Arc<SpanExporter>, OTelSdkError> {
        let mut exporters = self.exporters.lock().unwrap_or_else(PoisonError::into_inner);
        let service = if exporters.len() < MAX_SERVICES { service } else { "omni" };
        if let Some(exporter) = exporters.get(service) {
            return Ok(exporter.clone());
        }
        let _inside = self.runtime.enter();
        let mut exporter =
            (self.build)().map_err(|why| OTelSdkError::InternalFailure(why.to_string()))?;
        let resource = Resource::builder_empty()
            .with_attributes(
                self.base
                    .iter()
                    .map(|(key, value)| opentelemetry::KeyValue::new(key.clone(), value.clone())),
            )
            .with_service_name(service.to_owned())
            .build();
        exporter.set_resource(&resource);
        let exporter = Arc::new(exporter);
        exporters.insert(service.to_owned(), exporter.clone());
        Ok(exporter)
    }
}

impl Export for ByService {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let mut by_service: HashMap<String, Vec<SpanData>> = HashMap::new();
        for span in batch {
            let service = span.attributes.iter().find(|a| a.key.as_str() == SERVICE);
            let service = service.map_or("omni".into(), |a| a.value.as_str().into_owned());
            by_service.entry(service).or_default().push(span);
        }
        for (service, spans) in by_service {
            self.exporter(&service)?.export(spans).await?;
        }
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        let exporters = self.exporters.lock().unwrap_or_else(PoisonError::into_inner);
        exporters.values().try_for_each(|exporter| exporter.shutdown_with_timeout(timeout))
    }
}

impl std::fmt::Debug for ByService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ByService")
    }
}
