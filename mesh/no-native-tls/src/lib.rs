//! Stands in for the crate `native-tls`, which would link the system's OpenSSL.
//!
//! `consulrs` turns it on by a default feature of its HTTP client that can't be
//! turned off from outside, and nothing here uses it: HTTPS goes by rustls.
//! The types are what reqwest 0.11, hyper-tls and tokio-native-tls name; none
//! of those with a `Never` in it can exist, and building a connector is an
//! error that says so.

use std::{
    fmt,
    io::{self, Read, Write},
};

/// What can't exist.
#[derive(Clone, Debug)]
enum Never {}

/// Why there is no TLS: it isn't built in.
#[derive(Debug)]
pub struct Error(());

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("native-tls isn't built in; ask the client for rustls (`use_rustls_tls`)")
    }
}

impl std::error::Error for Error {}

/// A version of TLS.
#[derive(Clone, Copy, Debug)]
pub enum Protocol {
    /// SSL 3.0.
    Sslv3,
    /// TLS 1.0.
    Tlsv10,
    /// TLS 1.1.
    Tlsv11,
    /// TLS 1.2.
    Tlsv12,
}

/// A certificate; kept as its bytes' absence, for nobody will look at it.
#[derive(Clone)]
pub struct Certificate(());

impl Certificate {
    /// Takes any bytes: reqwest hands each certificate to both of its backends.
    ///
    /// # Errors
    /// Never.
    pub fn from_der(_: &[u8]) -> Result<Self> {
        Ok(Self(()))
    }

    /// As [`Certificate::from_der`].
    ///
    /// # Errors
    /// Never.
    pub fn from_pem(_: &[u8]) -> Result<Self> {
        Ok(Self(()))
    }

    /// # Errors
    /// Always.
    pub fn to_der(&self) -> Result<Vec<u8>> {
        Err(Error(()))
    }
}

/// A certificate with its key.
#[derive(Clone)]
pub struct Identity(Never);

impl Identity {
    /// # Errors
    /// Always.
    pub fn from_pkcs12(_: &[u8], _: &str) -> Result<Self> {
        Err(Error(()))
    }

    /// # Errors
    /// Always.
    pub fn from_pkcs8(_: &[u8], _: &[u8]) -> Result<Self> {
        Err(Error(()))
    }
}

/// What would make connections.
#[derive(Clone, Debug)]
pub struct TlsConnector(Never);

impl TlsConnector {
    /// # Errors
    /// Always.
    pub fn new() -> Result<Self> {
        Err(Error(()))
    }

    /// A builder that can't build.
    pub fn builder() -> TlsConnectorBuilder {
        TlsConnectorBuilder(())
    }

    /// Can't be called.
    ///
    /// # Errors
    /// None.
    pub fn connect<S: Read + Write>(
        &self,
        _: &str,
        _: S,
    ) -> std::result::Result<TlsStream<S>, HandshakeError<S>> {
        match self.0 {}
    }
}

/// Takes settings, and can't build.
pub struct TlsConnectorBuilder(());

impl TlsConnectorBuilder {
    /// # Errors
    /// Always.
    pub fn build(&self) -> Result<TlsConnector> {
        Err(Error(()))
    }

    /// Changes nothing.
    pub fn add_root_certificate(&mut self, _: Certificate) -> &mut Self {
        self
    }

    /// Changes nothing.
    pub fn danger_accept_invalid_certs(&mut self, _: bool) -> &mut Self {
        self
    }

    /// Changes nothing.
    pub fn danger_accept_invalid_hostnames(&mut self, _: bool) -> &mut Self {
        self
    }

    /// Changes nothing.
    pub fn disable_built_in_roots(&mut self, _: bool) -> &mut Self {
        self
    }

    /// Can't be called.
    pub fn identity(&mut self, identity: Identity) -> &mut Self {
        match identity.0 {}
    }

    /// Changes nothing.
    pub fn max_protocol_version(&mut self, _: Option<Protocol>) -> &mut Self {
        self
    }

    /// Changes nothing.
    pub fn min_protocol_version(&mut self, _: Option<Protocol>) -> &mut Self {
        self
    }

    /// Changes nothing.
    pub fn use_sni(&mut self, _: bool) -> &mut Self {
        self
    }
}

/// What would take connections.
#[derive(Clone)]
pub struct TlsAcceptor(Never);

impl TlsAcceptor {
    /// Can't be called.
    ///
    /// # Errors
    /// None.
    pub fn accept<S: Read + Write>(
        &self,
        _: S,
    ) -> std::result::Result<TlsStream<S>, HandshakeError<S>> {
        match self.0 {}
    }
}

/// A connection.
#[derive(Debug)]
pub struct TlsStream<S>(Never, std::marker::PhantomData<S>);

impl<S> TlsStream<S> {
    /// Can't be called.
    pub fn get_ref(&self) -> &S {
        match self.0 {}
    }

    /// Can't be called.
    pub fn get_mut(&mut self) -> &mut S {
        match self.0 {}
    }
}

impl<S: Read + Write> TlsStream<S> {
    /// Can't be called.
    ///
    /// # Errors
    /// None.
    pub fn peer_certificate(&self) -> Result<Option<Certificate>> {
        match self.0 {}
    }

    /// Can't be called.
    ///
    /// # Errors
    /// None.
    pub fn shutdown(&mut self) -> io::Result<()> {
        match self.0 {}
    }
}

impl<S: Read + Write> Read for TlsStream<S> {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        match self.0 {}
    }
}

impl<S: Read + Write> Write for TlsStream<S> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        match self.0 {}
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0 {}
    }
}

/// A handshake under way.
#[derive(Debug)]
pub struct MidHandshakeTlsStream<S>(Never, std::marker::PhantomData<S>);

impl<S> MidHandshakeTlsStream<S> {
    /// Can't be called.
    pub fn get_ref(&self) -> &S {
        match self.0 {}
    }

    /// Can't be called.
    pub fn get_mut(&mut self) -> &mut S {
        match self.0 {}
    }
}

impl<S: Read + Write> MidHandshakeTlsStream<S> {
    /// Can't be called.
    ///
    /// # Errors
    /// None.
    pub fn handshake(self) -> std::result::Result<TlsStream<S>, HandshakeError<S>> {
        match self.0 {}
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub enum HandshakeError<S> {
    /// It failed.
    Failure(Error),
    /// It is under way.
    WouldBlock(MidHandshakeTlsStream<S>),
}
