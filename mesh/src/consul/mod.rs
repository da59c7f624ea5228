//! The one client of the Consul agent: requests with a deadline and a bounded
//! answer, and blocking queries that go on for as long as somebody listens.
//!
//! What `consulrs` has, is used from there; `endpoints` declares what it
//! lacks. Requests run here and not through its `exec`, which holds answers of
//! any size, panics on a header that isn't ASCII, and forgets the index of a
//! missing key. Each watch holds a connection, and an agent takes 200 from one
//! address (`http_max_conns_per_client`) unless told otherwise.

pub(crate) mod endpoints;
pub(crate) mod follow;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use consulrs::api::{
    EndpointMiddleware,
    features::{Blocking, FeaturedEndpoint, Features},
};
use reqwest::{
    Method,
    header::{HeaderMap, HeaderValue},
};
use rustify::endpoint::Endpoint;
use secrecy::{ExposeSecret, SecretString};

use crate::{Error, config::Config};

/// How long the agent may hold a blocking query. Short, because this bounds
/// how long a connection that hangs half-open goes unnoticed.
const WAIT: Duration = Duration::from_secs(30);
/// How long a request that isn't held may take.
const DEADLINE: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// More than any answer of a sound agent: a service with 10,000 instances
/// needs about 10 MB.
const MAX_ANSWER_BYTES: usize = 32 << 20;
/// What is wrong where something had to be found.
const NOT_FOUND: &str = "it says 404, not found";
/// Says that there is more, which the token may not see.
const FILTERED: &str = "X-Consul-Results-Filtered-By-ACLs";
/// The port an agent listens on where the setting names none.
const DEFAULT_PORT: u16 = 8500;

/// The Consul agent of this machine.
pub struct Consul {
    http: reqwest::Client,
    address: String,
    wait: Duration,
}

/// What the agent answered, at one index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer<T> {
    pub(crate) value: T,
    pub(crate) index: u64,
}

/// Where a blocking query goes on from: the index last seen, 0 for an answer
/// at once, and how long the agent may hold it, [`WAIT`] unless given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Since {
    pub(crate) index: u64,
    pub(crate) wait: Option<Duration>,
}

impl Consul {
    /// The agent that the setting `registry` names, as `consul://host:port`,
    /// asked with the token in `consul.token`. Nothing is sent yet.
    ///
    /// # Errors
    /// When the address or the token can't be one.
    pub fn from_config(config: &Config) -> Result<Arc<Self>, Error> {
        let address = address(&config.registry)?;
        let http = reqwest::Client::builder()
            .http1_only()
            // It speaks in the clear; the system's roots needn't be there.
            .tls_certs_only([])
            // An agent is a neighbour: a proxy for the outside can't reach it.
            .no_proxy()
            .default_headers(headers(config.consul.token.as_ref())?)
            .connect_timeout(CONNECT_TIMEOUT)
            .build()
            .map_err(|why| Error::setting("registry", &config.registry, said(why)))?;
        Ok(Arc::new(Self { http, address, wait: WAIT }))
    }

    /// Sends a request, and answers what was found.
    ///
    /// # Errors
    /// When the agent can't be reached, refuses, or answers something else.
    pub(crate) async fn get<E>(&self, endpoint: E) -> Result<Answer<E::Response>, Error>
    where
        E: Endpoint + FeaturedEndpoint,
    {
        let path = endpoint.path();
        let Answer { value, index } = self.find(endpoint).await?;
        let value = value.ok_or_else(|| self.failed(&path, NOT_FOUND))?;
        Ok(Answer { value, index })
    }

    /// As [`Consul::get`], but an answer that lacks what the token may not see is
    /// refused: a token that lost its policy makes Consul say that nothing is
    /// there.
    ///
    /// # Errors
    /// As [`Consul::get`].
    pub(crate) async fn whole<E>(&self, endpoint: E) -> Result<Answer<E::Response>, Error>
    where
        E: Endpoint + FeaturedEndpoint,
    {
        let path = endpoint.path();
        let Answer { value, index } = self.find_whole(endpoint).await?;
        let value = value.ok_or_else(|| self.failed(&path, NOT_FOUND))?;
        Ok(Answer { value, index })
    }

    /// As [`Consul::whole`], but answers `None` where there is nothing.
    ///
    /// # Errors
    /// As [`Consul::whole`].
    pub(crate) async fn find_whole<E>(
        &self,
        endpoint: E,
    ) -> Result<Answer<Option<E::Response>>, Error>
    where
        E: Endpoint + FeaturedEndpoint,
    {
        let path = endpoint.path();
        match self.ask(endpoint, None).await? {
            (answer, false) => Ok(answer),
            (_, true) => {
                let why = "its answer isn't whole; give `consul.token` a token that may see all";
                Err(self.failed(&path, why))
            }
        }
    }

    /// As [`Consul::get`], but answers `None` where there is nothing.
    ///
    /// # Errors
    /// As [`Consul::get`].
    pub(crate) async fn find<E>(&self, endpoint: E) -> Result<Answer<Option<E::Response>>, Error>
    where
        E: Endpoint + FeaturedEndpoint,
    {
        Ok(self.ask(endpoint, None).await?.0)
    }

    /// As [`Consul::find`], for what the agent may hold for [`Consul::held_for`].
    ///
    /// # Errors
    /// As [`Consul::get`].
    pub(crate) async fn find_held<E>(&self, endpoint: E) -> Result<Option<E::Response>, Error>
    where
        E: Endpoint + FeaturedEndpoint,
    {
        Ok(self.ask(endpoint, Some(self.patience())).await?.0.value)
    }

    /// How long the agent may hold a query, as Go writes it.
    pub(crate) fn held_for(&self) -> String {
        go_duration(self.wait)
    }

    /// How long a query that is held may take. The agent adds up to a sixteenth,
    /// to spread its answers out.
    fn patience(&self) -> Duration {
        self.wait + self.wait / 16 + self.wait / 4
    }

    /// What was found, and whether more was there that the token may not see.
    async fn ask<E>(
        &self,
        endpoint: E,
        deadline: Option<Duration>,
    ) -> Result<(Answer<Option<E::Response>>, bool), Error>
    where
        E: Endpoint + FeaturedEndpoint,
    {
        let path = endpoint.path();
        let features = endpoint.features();
        let held = features.as_ref().and_then(|f| f.blocking.as_ref());
        let deadline = match held {
            Some(held) if held.index > 0 => self.patience(),
            _ => deadline.unwrap_or(DEADLINE),
        };
        let middleware = EndpointMiddleware { features, token: None, version: "v1".to_owned() };
        let request = endpoint
            .with_middleware(&middleware)
            .request(&self.address)
            .map_err(|why| self.failed(&path, why))?;
        // rustify's `http` is an older one, and its parts are this one's by their text.
        let (parts, body) = request.into_parts();
        let method = Method::from_bytes(parts.method.as_str().as_bytes())
            .map_err(|why| self.failed(&path, why))?;
        let mut request = self.http.request(method, parts.uri.to_string());
        for (name, value) in &parts.headers {
            request = request.header(name.as_str(), value.as_bytes());
        }

        let sent = request.body(body).timeout(deadline).send();
        let response = sent.await.map_err(|why| {
            let hint = "is the agent running, and is its address right in `registry`?";
            self.failed(&path, format!("{}; {hint}", said(why)))
        })?;
        let status = response.status();
        let index = index(response.headers());
        let filtered = response.headers().get(FILTERED).is_some_and(|value| value == "true");
        let body = self.body(&path, response).await?;
        if status == reqwest::StatusCode::NOT_FOUND {
            return Ok((Answer { value: None, index }, filtered));
        }
        if !status.is_success() {
            let said: String = String::from_utf8_lossy(&body).chars().take(256).collect();
            let hint = match status.as_u16() {
                401 | 403 => "; give `consul.token` a token that may do this",
                _ => "",
            };
            return Err(self.failed(&path, format!("it says {status}: {}{hint}", said.trim())));
        }
        let json: &[u8] = if body.is_empty() { b"null" } else { &body };
        // The answer itself stays out of the error: it may hold a key.
        let value = serde_json::from_slice(json)
            .map_err(|why| self.failed(&path, format!("its answer can't be read: {why}")))?;
        Ok((Answer { value: Some(value), index }, filtered))
    }

    /// What makes a request a blocking query.
    pub(crate) fn blocking(&self, since: Since) -> Option<Features> {
        let wait = since.wait.unwrap_or(self.wait).min(self.wait);
        Some(Features {
            blocking: Some(Blocking { index: since.index, wait: Some(go_duration(wait)) }),
            ..Features::default()
        })
    }

    async fn body(&self, path: &str, mut response: reqwest::Response) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        while let Some(chunk) =
            response.chunk().await.map_err(|why| self.failed(path, said(why)))?
        {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                let why = format!("its answer is larger than {MAX_ANSWER_BYTES} bytes");
                return Err(self.failed(path, why));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn failed(&self, path: &str, why: impl ToString) -> Error {
        Error::Consul { url: format!("{}/v1/{path}", self.address), cause: why.to_string() }
    }
}

/// An error of the HTTP client with all that caused it; it says only the first itself.
fn said(why: reqwest::Error) -> String {
    let why = why.without_url();
    let causes = std::iter::successors(std::error::Error::source(&why), |why| why.source());
    causes.fold(why.to_string(), |said, cause| format!("{said}: {cause}"))
}

/// `duration` as Go writes it.
pub(crate) fn go_duration(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

fn address(registry: &str) -> Result<String, Error> {
    let invalid = || {
        let expected = "expected `consul://host:port`, such as `consul://127.0.0.1:8500`";
        Error::setting("registry", registry, expected)
    };
    let url = url::Url::parse(registry).map_err(|_| invalid())?;
    let bare = url.username().is_empty()
        && url.password().is_none()
        && matches!(url.path(), "" | "/")
        && url.query().is_none()
        && url.fragment().is_none();
    match url.host_str() {
        Some(host) if url.scheme() == "consul" && bare && !host.is_empty() => {
            Ok(format!("http://{host}:{}", url.port().unwrap_or(DEFAULT_PORT)))
        }
        _ => Err(invalid()),
    }
}

fn headers(token: Option<&SecretString>) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    if let Some(token) = token {
        let mut value = HeaderValue::from_str(token.expose_secret()).map_err(|_| {
            Error::setting("consul.token", "********", "a token is one line of ASCII")
        })?;
        // Left out of every log by the HTTP client.
        value.set_sensitive(true);
        headers.insert("X-Consul-Token", value);
    }
    Ok(headers)
}

/// 0 where the endpoint has none.
fn index(headers: &HeaderMap) -> u64 {
    headers
        .get("X-Consul-Index")
        .and_then(|index| index.to_str().ok()?.parse().ok())
        .unwrap_or_default()
}

impl std::fmt::Debug for Consul {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Consul").field(&self.address).finish()
    }
}
