//! Handshakes with the mesh port, as a party of the mesh and as a stranger.

use std::{net::SocketAddr, sync::Arc};

use mesh::identity::Identity;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::aws_lc_rs,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The serial number of the leaf that `service` shows at `address`.
///
/// # Errors
/// When the handshake fails.
pub async fn serial(
    identity: &Identity,
    service: &str,
    address: SocketAddr,
) -> std::io::Result<String> {
    let stream = as_party(identity, service, address).await?;
    let (_, session) = stream.get_ref();
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    let leaf = leaf.ok_or_else(|| std::io::Error::other("no certificate"))?;
    let (_, leaf) = x509_parser::parse_x509_certificate(leaf).map_err(std::io::Error::other)?;
    Ok(leaf.raw_serial_as_string())
}

/// Connects as `identity` to an instance of `service`.
///
/// # Errors
/// When the handshake fails.
pub async fn as_party(
    identity: &Identity,
    service: &str,
    address: SocketAddr,
) -> std::io::Result<TlsStream<TcpStream>> {
    connect(identity.client_config(service), address).await
}

/// Connects as a stranger, with the certificate and key (in PEM) if given, and
/// answers what the server sends first.
///
/// # Errors
/// When the server refuses the handshake.
pub async fn as_stranger(
    certificate: Option<(&str, &str)>,
    address: SocketAddr,
) -> std::io::Result<u8> {
    let config = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match certificate {
        None => config.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .map_err(std::io::Error::other)?;
            let key =
                PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(std::io::Error::other)?;
            config.with_client_auth_cert(chain, key).map_err(std::io::Error::other)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut stream = connect(Arc::new(config), address).await?;
    // In TLS 1.3 a client is done before the server has judged it: only what
    // the server sends then shows what it thinks.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
    stream.read_u8().await
}

async fn connect(
    config: Arc<ClientConfig>,
    address: SocketAddr,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::IpAddress(address.ip().into());
    TlsConnector::from(config).connect(name, stream).await
}

/// Believes everybody.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
