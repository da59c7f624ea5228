//! `omni hook send`: a webhook as its source would send it.

use std::time::Duration;

use anyhow::{Context as _, bail};
use hmac::{Hmac, KeyInit as _, Mac as _};
use mesh::{config::Config, registry};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use sha2::Sha256;

use crate::{
    args::{Common, HookSend},
    config, input,
    output::line,
};

/// How long the gateway may take to answer.
const TIMEOUT: Duration = Duration::from_secs(15);

/// What is needed of `[hooks.sources.SOURCE]` to send.
#[derive(Debug, Default, Deserialize)]
struct Source {
    scheme: String,
    secret: Option<SecretString>,
    secret_file: Option<std::path::PathBuf>,
}

/// Signs and sends a file, and prints the gateway's answer.
pub(crate) async fn send(common: &Common, args: &HookSend) -> anyhow::Result<()> {
    let config = config::load(common, &[])?;
    let body = input::read(&args.file)?;
    let delivery = args.delivery.clone().unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
    let url = match &args.url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => gateway(&config).await?,
    };
    let url = format!("{url}/hooks/{}", args.source);
    let client = || reqwest::Client::builder().http1_only().timeout(TIMEOUT);
    let client = match client().build() {
        // A container may lack the system's roots, which HTTPS alone needs.
        Err(_) if reqwest::Url::parse(&url)?.scheme() == "http" => {
            client().tls_certs_only([]).build()?
        }
        built => built?,
    };
    let request = client.post(&url).header("content-type", &args.content_type);
    let request = sign(&config, args, &delivery, &body, request)?;
    let answer = request.body(body).send().await.with_context(|| format!("POST {url}"))?;
    let status = answer.status();
    let text = answer.text().await?;
    if !status.is_success() {
        bail!("the gateway answered {status}: {}", text.trim());
    }
    line(text.trim())
}

/// A registered gateway's address.
async fn gateway(config: &Config) -> anyhow::Result<String> {
    let gateways = registry::registry(config)?.services().await?.remove("gateway");
    let address = gateways.iter().flat_map(|all| all.iter()).find(|one| one.healthy);
    let address = address.context("no gateway is registered; give its address by --url")?.address;
    Ok(format!("http://{address}"))
}

/// Adds the headers of the source's scheme.
fn sign(
    config: &Config,
    args: &HookSend,
    delivery: &str,
    body: &[u8],
    request: reqwest::RequestBuilder,
) -> anyhow::Result<reqwest::RequestBuilder> {
    let section = format!("hooks.sources.{}", args.source);
    let mut source: Source = config.section(&section)?;
    let demo = config.data.join("hooks").join(format!("{}.secret", args.source));
    if source.scheme.is_empty() && demo.exists() {
        source = Source { scheme: "github".into(), secret: None, secret_file: Some(demo) };
    }
    match source.scheme.as_str() {
        "github" => {
            let secret = match (source.secret, &source.secret_file) {
                (Some(secret), _) => secret,
                (None, Some(file)) => std::fs::read_to_string(file)
                    .with_context(|| file.display().to_string())?
                    .trim_end_matches(['\r', '\n'])
                    .into(),
                (None, None) => bail!("`{section}` has no `secret`"),
            };
            let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes())?;
            mac.update(body);
            let signature = hex::encode(mac.finalize().into_bytes());
            Ok(request
                .header("x-hub-signature-256", format!("sha256={signature}"))
                .header("x-github-delivery", delivery)
                .header("x-github-event", &args.kind))
        }
        "api-key" => {
            let key =
                args.api_key.as_ref().context("a source of scheme `api-key` needs --api-key")?;
            Ok(request
                .header("x-api-key", key)
                .header("x-delivery-id", delivery)
                .header("x-event-type", &args.kind))
        }
        "" => bail!("there is no source `{}`: the configuration has no `[{section}]`", args.source),
        scheme => bail!("`{section}.scheme` is `{scheme}`, expected `github` or `api-key`"),
    }
}
