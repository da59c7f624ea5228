//! Judging a peer's certificate by the rules of X.509-SVID, on top of the
//! chain's own: exactly one URI SAN, our trust domain, no CA, and, where we
//! connect, the service we meant.
//!
//! Source: SPIFFE X509-SVID, sections 2 to 5.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{
        WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
    },
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName};

use super::{Identity, InvalidSpiffeId, SpiffeId};
use crate::telemetry::Throttle;

/// Why a certificate doesn't identify a party of the mesh.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPeer {
    /// The bytes are no certificate.
    #[error("it can't be parsed")]
    Unreadable,
    /// An X.509-SVID has exactly one URI SAN.
    #[error("it has {0} URI SANs, an X.509-SVID has exactly one")]
    UriCount(usize),
    /// The URI SAN is not an id of the mesh.
    #[error(transparent)]
    Id(#[from] InvalidSpiffeId),
    /// A CA's certificate can't stand for a party.
    #[error("it is a CA's certificate, or may sign certificates")]
    Authority,
    /// The certificate may not be used for signatures.
    #[error("its key usage lacks digital signature")]
    KeyUsage,
}

/// The id in a leaf certificate. The chain is not checked here.
///
/// # Errors
/// When the certificate isn't an X.509-SVID of a party of the mesh.
pub fn peer_id(certificate: &CertificateDer<'_>) -> Result<SpiffeId, InvalidPeer> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(certificate).map_err(|_| InvalidPeer::Unreadable)?;
    check_usage(&certificate)?;
    let san = certificate.subject_alternative_name().map_err(|_| InvalidPeer::Unreadable)?;
    let uris: Vec<&str> = san
        .iter()
        .flat_map(|san| &san.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    match uris[..] {
        [uri] => Ok(uri.parse()?),
        _ => Err(InvalidPeer::UriCount(uris.len())),
    }
}

fn check_usage(certificate: &X509Certificate<'_>) -> Result<(), InvalidPeer> {
    if certificate.is_ca() {
        return Err(InvalidPeer::Authority);
    }
    let usage = certificate.key_usage().map_err(|_| InvalidPeer::Unreadable)?;
    match usage.map(|usage| usage.value) {
        Some(usage) if usage.key_cert_sign() || usage.crl_sign() => Err(InvalidPeer::Authority),
        Some(usage) if usage.digital_signature() => Ok(()),
        _ => Err(InvalidPeer::KeyUsage),
    }
}

/// Verifies peers against the roots of each moment.
#[derive(Debug)]
pub(super) struct PeerVerifier {
    me: Identity,
    expected: Option<String>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PeerVerifier {
    /// Accepts every party of the trust domain; who may do what is decided
    /// for each request.
    pub(super) fn any(me: Identity) -> Self {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        Self { me, expected: None, algorithms }
    }

    /// Accepts only `service`.
    pub(super) fn named(me: Identity, service: &str) -> Self {
        Self { expected: Some(service.to_owned()), ..Self::any(me) }
    }

    /// Logs why a chain is refused, and for whom its leaf is, as far as that can
    /// be said of somebody nobody vouches for.
    fn log(&self, leaf: &CertificateDer<'_>, why: &Error) {
        static LINES: Throttle = Throttle::new();
        if let Some(left_out) = LINES.admit() {
            let says_it_is = peer_id(leaf).map_or_else(|why| why.to_string(), |id| id.to_string());
            tracing::warn!(me = %self.me.id(), says_it_is, %why, left_out, "peer refused");
        }
    }

    fn check_id(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let me = self.me.id();
        let peer = peer_id(certificate)
            .map_err(|why| refusal(&me, &format!("the peer's certificate: {why}")))?;
        if peer.trust_domain() != me.trust_domain() {
            return Err(refusal(&me, &format!("the peer is {peer}, of another trust domain")));
        }
        match &self.expected {
            Some(expected) if peer.name() != expected => {
                Err(refusal(&me, &format!("the peer is {peer}, wanted was `{expected}`")))
            }
            _ => Ok(()),
        }
    }
}

fn refusal(me: &SpiffeId, why: &str) -> Error {
    Error::InvalidCertificate(CertificateError::Other(rustls::OtherError(Arc::new(
        std::io::Error::other(format!("{me} refused: {why}")),
    ))))
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let roots = self.me.current().roots.clone();
        ParsedCertificate::try_from(leaf)
            .and_then(|leaf| {
                let algorithms = self.algorithms.all;
                verify_server_cert_signed_by_trust_anchor(
                    &leaf,
                    &roots,
                    intermediates,
                    now,
                    algorithms,
                )
            })
            .inspect_err(|why| self.log(leaf, why))?;
        self.check_id(leaf)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    /// No hints: the roots change, and every party has just one certificate.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        WebPkiClientVerifier::builder_with_provider(self.me.current().roots.clone(), provider)
            .build()
            .map_err(|why| Error::General(why.to_string()))?
            .verify_client_cert(leaf, intermediates, now)
            .inspect_err(|why| self.log(leaf, why))?;
        self.check_id(leaf)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
