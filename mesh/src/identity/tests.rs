//! Who is let in and who isn't, by real TLS handshakes in memory.

use std::time::{Duration, SystemTime};

use fake_consul::ConnectCa;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{RootCertStore, crypto::aws_lc_rs, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

const DOMAIN: &str = "test.internal";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A CA that signs whatever it is given.
struct Ca {
    root: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Test CA");
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { root, issuer }
    }

    /// A sound leaf for `name`, changed by `edit`; it isn't checked.
    fn identity(&self, name: &str, edit: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri(DOMAIN, name)];
        edit(&mut params);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        unchecked(name, &leaf.pem(), &key.serialize_pem(), &[&self.root])
    }
}

fn uri(domain: &str, name: &str) -> SanType {
    let id = SpiffeId::of_service(domain, name).unwrap();
    SanType::URI(id.as_str().try_into().unwrap())
}

/// An identity that claims to be `name`, whatever its leaf says.
fn unchecked(name: &str, chain: &str, key: &str, roots: &[&str]) -> Identity {
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes());
    let chain = chain.collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let certified = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).unwrap();
    let mut store = RootCertStore::empty();
    for root in roots {
        let root = CertificateDer::from_pem_slice(root.as_bytes()).unwrap();
        store.add(root).unwrap();
    }
    let material = Material {
        id: SpiffeId::of_service(DOMAIN, name).unwrap(),
        serial: String::new(),
        not_before: SystemTime::now(),
        not_after: SystemTime::now() + DAY,
        certified: Arc::new(certified),
        roots: Arc::new(store),
        roots_pem: roots.concat(),
    };
    Identity::new(watch::channel(Arc::new(material)).1)
}

/// What each side says of a connection of `client` to `server`, which it takes
/// for an instance of `service`; `Ok` when both could talk.
pub(super) async fn connect(
    client: &Identity,
    server: &Identity,
    service: &str,
) -> (std::io::Result<()>, std::io::Result<()>) {
    // Another test may have been first.
    let _ = aws_lc_rs::default_provider().install_default();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let connector = TlsConnector::from(client.client_config(service));
    let acceptor = TlsAcceptor::from(server.server_config());
    let name = ServerName::try_from("mesh").unwrap();
    let connected = async move {
        let mut stream = connector.connect(name, near).await?;
        // A client ends its handshake before the server has judged it.
        stream.read_u8().await.map(drop)
    };
    let accepted = async move {
        let mut stream = acceptor.accept(far).await?;
        stream.write_u8(1).await?;
        stream.shutdown().await
    };
    tokio::join!(connected, accepted)
}

async fn assert_accepted(client: &Identity, server: &Identity, service: &str) {
    let (connected, accepted) = connect(client, server, service).await;
    connected.expect("the client is content");
    accepted.expect("the server is content");
}

/// Asserts that a peer whose leaf is changed by `edit` is refused, both as a
/// server and as a client, and that `why` is said.
async fn assert_refused(why: &str, edit: impl Fn(&mut CertificateParams)) {
    let ca = Ca::new();
    let (sound, wrong) = (ca.identity("a", |_| {}), ca.identity("b", edit));
    let (connected, _) = connect(&sound, &wrong, "b").await;
    let (_, accepted) = connect(&wrong, &sound, "a").await;
    for (side, said) in [("as a server", connected), ("as a client", accepted)] {
        let said = said.expect_err(side).to_string();
        assert!(said.contains(why), "{side}: {said}");
    }
}

#[tokio::test]
async fn two_parties_of_the_mesh_are_let_in_and_speak_http2() {
    let ca = Ca::new();
    let (a, b) = (ca.identity("a", |_| {}), ca.identity("b", |_| {}));
    assert_accepted(&a, &b, "b").await;
    assert_eq!(b.server_config().alpn_protocols, [b"h2"]);
}

#[tokio::test]
async fn a_leaf_of_connects_shape_is_let_in() {
    let mut ca = ConnectCa::new();
    let leaf = ca.leaf("echo");
    let text = |key: &str| leaf[key].as_str().unwrap().to_owned();
    let der = CertificateDer::from_pem_slice(text("CertPEM").as_bytes()).unwrap();
    {
        let (_, leaf) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert_eq!(leaf.subject().iter().count(), 0, "its subject is empty");
        let san = leaf.subject_alternative_name().unwrap().unwrap();
        assert!(san.critical && san.value.general_names.len() == 1);
    }
    let roots = ca.roots().concat();
    let material = Material::from_pem(&text("CertPEM"), &text("PrivateKeyPEM"), &roots).unwrap();
    assert_eq!(material.id.name(), "echo");
    let echo = Identity::new(watch::channel(Arc::new(material)).1);
    assert_accepted(&echo, &echo, "echo").await;
}

#[tokio::test]
async fn another_service_than_the_one_wanted_is_refused_and_both_are_named() {
    let ca = Ca::new();
    let (a, b) = (ca.identity("a", |_| {}), ca.identity("b", |_| {}));
    let (connected, _) = connect(&a, &b, "c").await;
    let said = connected.unwrap_err().to_string();
    for part in ["/svc/a refused", "/svc/b", "wanted was `c`"] {
        assert!(said.contains(part), "{said}");
    }
}

#[tokio::test]
async fn two_uris_are_refused() {
    assert_refused("2 URI SANs", |leaf| {
        leaf.subject_alt_names.push(uri(DOMAIN, "other"));
    })
    .await;
}

#[tokio::test]
async fn a_missing_uri_is_refused() {
    assert_refused("0 URI SANs", |leaf| {
        leaf.subject_alt_names = vec![SanType::DnsName("b".try_into().unwrap())];
    })
    .await;
}

#[tokio::test]
async fn a_uri_that_is_no_id_of_the_mesh_is_refused() {
    assert_refused("is not spiffe://", |leaf| {
        leaf.subject_alt_names = vec![SanType::URI("spiffe://test.internal/b".try_into().unwrap())];
    })
    .await;
}

#[tokio::test]
async fn another_trust_domain_is_refused_even_when_our_root_signed_it() {
    assert_refused("of another trust domain", |leaf| {
        leaf.subject_alt_names = vec![uri("other.internal", "b")];
    })
    .await;
}

#[tokio::test]
async fn a_cas_certificate_is_refused() {
    assert_refused("CaUsedAsEndEntity", |leaf| {
        leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    })
    .await;
}

#[tokio::test]
async fn a_leaf_that_may_sign_certificates_is_refused() {
    assert_refused("may sign certificates", |leaf| {
        leaf.key_usages.push(KeyUsagePurpose::KeyCertSign);
    })
    .await;
}

#[tokio::test]
async fn an_expired_leaf_is_refused() {
    assert_refused("expired", |leaf| {
        leaf.not_before = (SystemTime::now() - 2 * DAY).into();
        leaf.not_after = (SystemTime::now() - DAY).into();
    })
    .await;
}

#[tokio::test]
async fn a_leaf_that_is_not_valid_yet_is_refused() {
    assert_refused("not valid yet", |leaf| {
        leaf.not_before = (SystemTime::now() + DAY).into();
        leaf.not_after = (SystemTime::now() + 2 * DAY).into();
    })
    .await;
}

#[tokio::test]
async fn a_leaf_of_a_foreign_root_is_refused() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let (a, b) = (ours.identity("a", |_| {}), theirs.identity("b", |_| {}));
    connect(&a, &b, "b").await.0.expect_err("as a server");
    connect(&b, &a, "a").await.1.expect_err("as a client");
}
