//! The least that a webhook's receiver can do: an axum handler that reads the
//! body, checks its signature and says yes.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use axum::{Router, body::Bytes, extract::State, routing::post};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, StatusCode};
use sha2::Sha256;
use tokio::{io::AsyncReadExt as _, net::TcpListener};

/// Says where it listens, in one line, and serves until its input ends.
///
/// # Errors
/// When there is no port.
pub(crate) async fn serve(secret: String) -> anyhow::Result<()> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    println!("{}", listener.local_addr()?);
    let routes = Router::new()
        .route("/hooks/{source}", post(receive))
        .with_state(Arc::new(secret.into_bytes()));
    let end = async {
        let _ = tokio::io::stdin().read(&mut [0]).await;
    };
    tokio::select! {
        served = axum::serve(listener, routes) => served.context("it doesn't serve"),
        () = end => Ok(()),
    }
}

async fn receive(
    State(secret): State<Arc<Vec<u8>>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, &'static str), StatusCode> {
    let signature = headers.get("x-hub-signature-256").and_then(|value| value.to_str().ok());
    let signature = signature.and_then(|value| value.strip_prefix("sha256="));
    let signature = signature.and_then(|digits| hex::decode(digits).ok());
    let signature = signature.ok_or(StatusCode::UNAUTHORIZED)?;
    let mut mac =
        Hmac::<Sha256>::new_from_slice(&secret).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    mac.update(&body);
    mac.verify_slice(&signature).map_err(|_| StatusCode::UNAUTHORIZED)?;
    Ok((StatusCode::ACCEPTED, r#"{"accepted":true}"#))
}
