//! Envoy as the hops: a pair as sidecars would be, from the client in the clear to
//! the hop beside it, over mutual TLS to the hop beside the server, and from there
//! in the clear; or one alone, in the clear on both sides. None logs, traces or
//! authorises: it is Envoy at its fastest.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use benches::machine;
use mesh::identity::{SpiffeId, dev::Issued, dev::TRUST_DOMAIN};
use serde_json::{Value, json};

use crate::{
    meshed::{self, CLIENT, SERVER},
    party::{Hops, Party},
    server::{CONNECTION_WINDOW, STREAM_WINDOW},
};

/// How long one may take to listen.
const START: Duration = Duration::from_secs(20);

/// Starts one hop on the way to the server at `to`.
///
/// # Errors
/// When it can't be started.
pub(crate) async fn single(program: &Path, data: &Path, to: SocketAddr) -> anyhow::Result<Hops> {
    let address = free_address()?;
    let config = hop(address, &None, to, &None);
    let only = run(program, data, "only", &config).await?;
    listens(address).await?;
    Ok(Hops { address, parties: vec![only] })
}

/// Starts a pair on the way to the server at `to`.
///
/// # Errors
/// When one can't be started.
pub(crate) async fn pair(program: &Path, data: &Path, to: SocketAddr) -> anyhow::Result<Hops> {
    let (near, far) = (free_address()?, free_address()?);
    let beside_server = hop(far, &Some(inbound(data)?), to, &None);
    let beside_client = hop(near, &None, far, &Some(outbound(data)?));
    let far_hop = run(program, data, "far", &beside_server).await?;
    let near_hop = run(program, data, "near", &beside_client).await?;
    for address in [far, near] {
        listens(address).await?;
    }
    Ok(Hops { address: near, parties: vec![near_hop, far_hop] })
}

async fn run(program: &Path, data: &Path, name: &str, config: &Value) -> anyhow::Result<Party> {
    let file = data.join(format!("envoy-{name}.json"));
    tokio::fs::write(&file, serde_json::to_vec_pretty(config)?).await?;
    let file = file.display().to_string();
    let workers = machine::cores()?.to_string();
    // Several on one machine: no shared memory for a restart in place.
    let args = ["-c", &file, "--concurrency", &workers, "-l", "error", "--disable-hot-restart"];
    Party::start(program, &args)
}

/// One hop: takes HTTP/2 at `at`, passes it on to `to`.
fn hop(at: SocketAddr, tls_in: &Option<Value>, to: SocketAddr, tls_out: &Option<Value>) -> Value {
    let http2 = json!({
        "initial_stream_window_size": STREAM_WINDOW,
        "initial_connection_window_size": CONNECTION_WINDOW,
    });
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "codec_type": "HTTP2",
        "http2_protocol_options": http2,
        "route_config": { "virtual_hosts": [{
            "name": "all",
            "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "next" } }],
        }] },
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            },
        }],
    });
    let mut chain = json!({ "filters": [{
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": manager,
    }] });
    if let Some(tls) = tls_in {
        chain["transport_socket"] = tls.clone();
    }
    let mut cluster = json!({
        "name": "next",
        "type": "STATIC",
        "connect_timeout": "3s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": http2 },
            },
        },
        "load_assignment": { "cluster_name": "next", "endpoints": [{ "lb_endpoints": [{
            "endpoint": { "address": address(to) },
        }] }] },
    });
    if let Some(tls) = tls_out {
        cluster["transport_socket"] = tls.clone();
    }
    json!({ "static_resources": {
        "listeners": [{ "name": "in", "address": address(at), "filter_chains": [chain] }],
        "clusters": [cluster],
    } })
}

fn address(address: SocketAddr) -> Value {
    json!({ "socket_address": {
        "address": address.ip().to_string(),
        "port_value": address.port(),
    } })
}

fn inbound(data: &Path) -> anyhow::Result<Value> {
    let common = tls(&meshed::issue(data, SERVER)?, CLIENT)?;
    Ok(json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "common_tls_context": common,
        },
    }))
}

fn outbound(data: &Path) -> anyhow::Result<Value> {
    let common = tls(&meshed::issue(data, CLIENT)?, SERVER)?;
    Ok(json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": common,
        },
    }))
}

/// TLS 1.3 with the certificate `own`, for nobody but `peer`.
fn tls(own: &Issued, peer: &str) -> anyhow::Result<Value> {
    let peer = SpiffeId::of_service(TRUST_DOMAIN, peer)?;
    Ok(json!({
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "alpn_protocols": ["h2"],
        "tls_certificates": [{
            "certificate_chain": { "inline_string": own.chain },
            "private_key": { "inline_string": own.key },
        }],
        "validation_context": {
            "trusted_ca": { "inline_string": own.roots },
            "match_typed_subject_alt_names": [
                { "san_type": "URI", "matcher": { "exact": peer.as_str() } },
            ],
        },
    }))
}

/// One that nobody has at the moment; Envoy wants to be told.
fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

async fn listens(address: SocketAddr) -> anyhow::Result<()> {
    let begun = Instant::now();
    while tokio::net::TcpStream::connect(address).await.is_err() {
        ensure!(begun.elapsed() < START, "no Envoy listens at {address} within {START:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// What `program` calls itself.
///
/// # Errors
/// When it doesn't run.
pub(crate) async fn version(program: &Path) -> anyhow::Result<String> {
    let asked = tokio::process::Command::new(program).arg("--version").output().await;
    let said = asked.with_context(|| format!("can't run {}", program.display()))?.stdout;
    let said = String::from_utf8_lossy(&said).into_owned();
    // /path/to/envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL
    let build = said.split_once("version: ").map(|(_, build)| build);
    let version = build.and_then(|build| build.split('/').nth(1));
    Ok(version.with_context(|| format!("Envoy said `{said}`"))?.to_owned())
}
