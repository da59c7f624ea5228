//! `omni call`: any method of any service, found in the registry, understood by
//! reflection, called as an operator over the mesh's own client stack.

mod codec;
mod reflection;

use std::{io::Read as _, time::Duration};

use anyhow::{Context as _, bail};
use http::uri::PathAndQuery;
use mesh::{client::Channel, intercept::code_name, policy::Trust, registry::Registry, status};
use prost_reflect::{DynamicMessage, MessageDescriptor, SerializeOptions};
use tokio_stream::StreamExt as _;
use tonic::{Request, Status, client::Grpc};
use tonic_types::StatusExt as _;

use self::codec::DynamicCodec;
use crate::{
    args::{Call, Common},
    certs, config,
    operator::Operator,
    output,
};

/// How many bytes an answer may have.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Calls a method and prints what it answers.
pub(crate) async fn run(common: &Common, args: &Call) -> anyhow::Result<()> {
    let (service_name, method_name) = split(&args.method)?;
    let config = config::load(common, &[])?;
    let name = args.as_service.clone().unwrap_or_else(|| certs::operator(&args.operator));
    let operator = Operator::new(&config, &name).await?;
    let service = match &args.service {
        Some(service) => service.clone(),
        None => find(operator.registry.as_ref(), &operator.trust, service_name).await?,
    };
    let mut channel = operator.client.channel(&service).await?;
    if let Some(range) = &args.version {
        channel = channel.of_version(range.clone());
    }
    let package = package(service_name);
    let descriptor = reflection::service(channel.clone().of_package(package), service_name).await?;
    let method = descriptor.methods().find(|method| method.name() == method_name);
    let method = method.with_context(|| {
        let all: Vec<String> = descriptor.methods().map(|m| m.name().to_owned()).collect();
        format!("{service_name} has no method `{method_name}`; it has {}", all.join(", "))
    })?;
    let requests = requests(&args.request, &method.input())?;
    if requests.len() != 1 && !method.is_client_streaming() {
        bail!("{method_name} takes one request, {} are given", requests.len());
    }
    let path: PathAndQuery = format!("/{service_name}/{method_name}").parse()?;
    let codec = DynamicCodec::new(method.output());
    answer(channel, path, codec, requests, args).await
}

async fn answer(
    channel: Channel,
    path: PathAndQuery,
    codec: DynamicCodec,
    requests: Vec<DynamicMessage>,
    args: &Call,
) -> anyhow::Result<()> {
    let mut grpc = Grpc::new(channel).max_decoding_message_size(MAX_ANSWER);
    let mut request = Request::new(tokio_stream::iter(requests));
    if let Some(seconds) = args.timeout {
        request.set_timeout(Duration::from_secs(seconds));
    }
    grpc.ready().await.map_err(|status| failed(&status))?;
    // A call with one request and one answer is a stream of one on the wire.
    let answers = grpc.streaming(request, path, codec).await.map_err(|status| failed(&status))?;
    let mut answers = answers.into_inner();
    while let Some(answer) = answers.next().await {
        let answer = answer.map_err(|status| failed(&status))?;
        output::line(&to_json(&answer, args.json)?)?;
    }
    Ok(())
}

fn split(method: &str) -> anyhow::Result<(&str, &str)> {
    method
        .trim_start_matches('/')
        .rsplit_once('/')
        .filter(|(service, method)| service.contains('.') && !method.is_empty())
        .with_context(|| format!("`{method}` is not PACKAGE.Service/Method"))
}

fn package(grpc_service: &str) -> &str {
    grpc_service.rsplit_once('.').map_or("", |(package, _)| package)
}

/// The service whose instances registered the package of `grpc_service`; where there
/// is none, the one that may convert its calls.
async fn find(
    registry: &dyn Registry,
    trust: &Trust,
    grpc_service: &str,
) -> anyhow::Result<String> {
    let package = package(grpc_service);
    let services = registry.services().await?;
    let serves = services.iter().find(|(_, instances)| {
        instances.iter().any(|instance| instance.packages.iter().any(|p| p == package))
    });
    let name = serves.map(|(name, _)| name.as_str());
    let converts = || services.keys().map(String::as_str).find(|name| trust.converts(name));
    let name = name.or_else(converts);
    let name = name.with_context(|| {
        format!("no registered service serves `{package}`; see `omni versions`, or give --service")
    })?;
    Ok(name.to_owned())
}

/// The requests in `text`, one JSON object after the other.
fn requests(text: &str, message: &MessageDescriptor) -> anyhow::Result<Vec<DynamicMessage>> {
    let mut input = String::new();
    let text = if text == "-" {
        std::io::stdin().lock().read_to_string(&mut input)?;
        &input
    } else {
        text
    };
    let values = serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>();
    values
        .map(|value| {
            let value = value.context("the request is no JSON")?;
            DynamicMessage::deserialize(message.clone(), value)
                .with_context(|| format!("the request is no {}", message.full_name()))
        })
        .collect()
}

fn to_json(answer: &DynamicMessage, one_line: bool) -> anyhow::Result<String> {
    let options = SerializeOptions::new().skip_default_fields(true);
    let mut text = Vec::new();
    if one_line {
        answer.serialize_with_options(&mut serde_json::Serializer::new(&mut text), &options)?;
    } else {
        let mut pretty = serde_json::Serializer::pretty(&mut text);
        answer.serialize_with_options(&mut pretty, &options)?;
    }
    Ok(String::from_utf8(text)?)
}

/// A status as a person reads it.
pub(crate) fn failed(failure: &Status) -> anyhow::Error {
    let mut text = format!(
        "{} ({}): {}",
        code_name(failure.code()),
        status::reason(failure).as_str(),
        failure.message(),
    );
    if let Some(bad) = failure.get_error_details().bad_request() {
        // The first one is the message already.
        for violation in bad.field_violations.iter().skip(1) {
            text += &format!("\n  {}: {}", violation.field, violation.description);
        }
    }
    anyhow::Error::msg(text)
}
