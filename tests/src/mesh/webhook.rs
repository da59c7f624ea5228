//! Webhooks, as their senders post them.

use std::{collections::HashMap, net::SocketAddr};

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::StatusCode;
use serde_json::Value;
use sha2::Sha256;

use super::{Mesh, SECRET};

/// The gateway's answer.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The headers.
    pub headers: reqwest::header::HeaderMap,
    /// The body, `null` where it isn't JSON.
    pub body: Value,
}

impl Mesh {
    /// Posts `body` to the source `demo` as GitHub would.
    pub async fn post(&self, delivery: &str, body: &[u8]) -> Answer {
        self.post_with(delivery, body, &[]).await
    }

    /// As [`Mesh::post`], with further headers, which win over the usual ones.
    ///
    /// # Panics
    /// When the gateway doesn't answer at all.
    pub async fn post_with(&self, delivery: &str, body: &[u8], more: &[(&str, &str)]) -> Answer {
        let answer = self.try_post_to(self.gateway(), delivery, body, more).await;
        if answer.is_err() {
            // It may be elsewhere by now.
            self.forget_gateway();
        }
        answer.expect("the gateway answers")
    }

    /// As [`Mesh::post_with`], to a gateway whose address is known.
    ///
    /// # Panics
    /// When the gateway doesn't answer at all.
    pub async fn post_to(
        &self,
        gateway: SocketAddr,
        delivery: &str,
        body: &[u8],
        more: &[(&str, &str)],
    ) -> Answer {
        self.try_post_to(gateway, delivery, body, more).await.expect("the gateway answers")
    }

    /// As [`Mesh::post_to`], to a gateway that may not be there.
    ///
    /// # Errors
    /// When it doesn't answer, and why.
    pub async fn try_post_to(
        &self,
        gateway: SocketAddr,
        delivery: &str,
        body: &[u8],
        more: &[(&str, &str)],
    ) -> Result<Answer, String> {
        let mut headers = HashMap::from([
            ("content-type", "application/json".to_owned()),
            ("x-github-event", "push".to_owned()),
            ("x-github-delivery", delivery.to_owned()),
            ("x-hub-signature-256", signature(body)),
        ]);
        headers.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        self.try_send(&format!("http://{gateway}/hooks/demo"), headers, body).await
    }

    /// Posts to any address.
    ///
    /// # Panics
    /// When nothing answers.
    pub async fn send(&self, url: &str, headers: HashMap<&str, String>, body: &[u8]) -> Answer {
        self.try_send(url, headers, body).await.expect("the gateway answers")
    }

    async fn try_send(
        &self,
        url: &str,
        headers: HashMap<&str, String>,
        body: &[u8],
    ) -> Result<Answer, String> {
        let mut request = self.http.post(url).body(body.to_vec());
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let answer = request.send().await.map_err(|why| format!("{why:?}"))?;
        let status = StatusCode::from_u16(answer.status().as_u16()).expect("a status");
        let headers = answer.headers().clone();
        let body = answer.bytes().await.map_err(|why| format!("{why:?}"))?;
        let body = serde_json::from_slice(&body).unwrap_or_default();
        Ok(Answer { status, headers, body })
    }
}

/// GitHub's signature of `body` with the secret of `demo`.
///
/// # Panics
/// Never: HMAC takes keys of any length.
pub fn signature(body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any length is taken");
    mac.update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}
