//! Stands in for the crate `reqwest` 0.11, which would bring a second stack of
//! HTTP and TLS: hyper 0.14, h2 0.3, rustls 0.21, ring and OpenSSL.
//!
//! `consulrs` and its `rustify` name these types in clients of their own, which
//! OmniBridge doesn't use: `mesh` takes their requests and sends them itself. No
//! client can be built and no request made here, so nothing is ever sent: each
//! attempt answers an [`Error`] that says so.

use std::{convert::Infallible, fmt};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use url::Url;

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Error>;

/// Why nothing is sent.
#[derive(Debug)]
pub struct Error(());

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("reqwest 0.11 isn't built in; send the request by `mesh::consul`")
    }
}

impl std::error::Error for Error {}

/// A client that has nothing to send.
#[derive(Clone, Debug, Default)]
pub struct Client(());

impl Client {
    /// Sends a request, of which there is none.
    ///
    /// # Errors
    /// Never.
    pub async fn execute(&self, request: Request) -> Result<Response> {
        match request.0 {}
    }
}

/// Takes every setting, and builds nothing.
#[derive(Debug, Default)]
#[must_use]
pub struct ClientBuilder(());

impl ClientBuilder {
    /// A builder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ignores it.
    pub fn danger_accept_invalid_certs(self, _: bool) -> Self {
        self
    }

    /// Ignores a certificate that can't exist.
    pub fn add_root_certificate(self, _: Certificate) -> Self {
        self
    }

    /// Ignores an identity that can't exist.
    pub fn identity(self, _: Identity) -> Self {
        self
    }

    /// Builds nothing.
    ///
    /// # Errors
    /// Always.
    pub fn build(self) -> Result<Client> {
        Err(Error(()))
    }
}

/// A certificate that can't exist.
#[derive(Clone, Debug)]
pub struct Certificate(Infallible);

impl Certificate {
    /// Reads nothing.
    ///
    /// # Errors
    /// Always.
    pub fn from_pem(_: &[u8]) -> Result<Self> {
        Err(Error(()))
    }
}

/// An identity that can't exist.
#[derive(Clone, Debug)]
pub struct Identity(Infallible);

impl Identity {
    /// Reads nothing.
    ///
    /// # Errors
    /// Always.
    pub fn from_pem(_: &[u8]) -> Result<Self> {
        Err(Error(()))
    }
}

/// A request that can't exist.
#[derive(Debug)]
pub struct Request(Infallible);

impl Request {
    /// Where it would go.
    pub fn url(&self) -> &Url {
        match self.0 {}
    }

    /// How.
    pub fn method(&self) -> &Method {
        match self.0 {}
    }
}

impl TryFrom<http::Request<Vec<u8>>> for Request {
    type Error = Error;

    fn try_from(_: http::Request<Vec<u8>>) -> Result<Self> {
        Err(Error(()))
    }
}

/// An answer that can't exist.
#[derive(Debug)]
pub struct Response(Infallible);

impl Response {
    /// How it went.
    pub fn status(&self) -> StatusCode {
        match self.0 {}
    }

    /// What it says of itself.
    pub fn headers(&self) -> &HeaderMap {
        match self.0 {}
    }

    /// What it says.
    ///
    /// # Errors
    /// Never.
    pub async fn bytes(self) -> Result<Bytes> {
        match self.0 {}
    }
}
