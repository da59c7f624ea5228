//! Who is let in and who isn't, by real TLS handshakes in memory; what becomes
//! of connections in `tests/`.

mod fuzz;
mod lifetime;
mod live;
mod resumption;
mod rotation;

use std::time::{Duration, SystemTime};

use fake_consul::ConnectCa;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    RootCertStore, client::danger::ServerCertVerifier as _, crypto::aws_lc_rs,
    server::danger::ClientCertVerifier as _, sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

const DOMAIN: &str = "test.internal";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A CA that signs whatever it is given.
struct Ca {
    root: String,
    issuer: Issuer<'static, KeyPair>,
    /// What a leaf is followed by.
    intermediates: String,
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
        Self { root, issuer, intermediates: String::new() }
    }

    /// A CA between this one's root and its leafs, changed by `edit`.
    fn intermediate(&self, edit: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Test intermediate");
        edit(&mut params);
        let key = KeyPair::generate().unwrap();
        let intermediates = params.signed_by(&key, &self.issuer).unwrap().pem();
        Self { root: self.root.clone(), issuer: Issuer::new(params, key), intermediates }
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
        let chain = leaf.pem() + &self.intermediates;
        unchecked(name, &chain, &key.serialize_pem(), &[&self.root])
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

/// `identity` as it is, but with these roots to judge others by.
fn trusting(identity: &Identity, roots: &[&str]) -> Arc<Material> {
    let now = identity.current();
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
    }
    Arc::new(Material {
        id: now.id.clone(),
        serial: now.serial.clone(),
        not_before: now.not_before,
        not_after: now.not_after,
        certified: now.certified.clone(),
        roots: Arc::new(store),
        roots_pem: roots.concat(),
    })
}

/// An identity that stays as it is, as one whose process was told nothing.
fn frozen(material: Arc<Material>) -> Identity {
    Identity::new(watch::channel(material).1)
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
    handshake(client.client_config(service), server.server_config()).await
}

async fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> (std::io::Result<()>, std::io::Result<()>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (connector, acceptor) = (TlsConnector::from(client), TlsAcceptor::from(server));
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
    let a = ours.identity("a", |_| {});
    // It trusts us: only what we say of it counts.
    let b = frozen(trusting(&theirs.identity("b", |_| {}), &[&ours.root]));
    for said in [connect(&a, &b, "b").await.0, connect(&b, &a, "a").await.1] {
        let said = said.unwrap_err().to_string();
        // Both roots have one name; the key tells them apart.
        assert!(said.contains("invalid peer certificate: BadSignature"), "{said}");
    }
}

#[tokio::test]
async fn a_foreign_root_sent_along_is_not_believed() {
    let (ours, mut theirs) = (Ca::new(), Ca::new());
    theirs.intermediates = theirs.root.clone();
    let (a, b) = (ours.identity("a", |_| {}), theirs.identity("b", |_| {}));
    connect(&a, &b, "b").await.0.expect_err("as a server");
    connect(&b, &a, "a").await.1.expect_err("as a client");
}

#[tokio::test]
async fn a_chain_through_an_intermediate_is_let_in_and_not_without_it() {
    let ca = Ca::new();
    let mut between = ca.intermediate(|_| {});
    let (a, b) = (ca.identity("a", |_| {}), between.identity("b", |_| {}));
    assert_accepted(&a, &b, "b").await;
    assert_accepted(&b, &a, "a").await;
    between.intermediates.clear();
    let b = between.identity("b", |_| {});
    connect(&a, &b, "b").await.0.expect_err("as a server");
    connect(&b, &a, "a").await.1.expect_err("as a client");
}

#[tokio::test]
async fn a_leaf_can_not_sign_another_one() {
    let ca = Ca::new();
    let leaf = ca.intermediate(|leaf| {
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.subject_alt_names = vec![uri(DOMAIN, "b")];
    });
    let (a, b) = (ca.identity("a", |_| {}), leaf.identity("b", |_| {}));
    connect(&a, &b, "b").await.0.expect_err("as a server");
    connect(&b, &a, "a").await.1.expect_err("as a client");
}

#[tokio::test]
async fn an_intermediate_that_is_over_is_refused() {
    let ca = Ca::new();
    let between = ca.intermediate(|ca| ca.not_after = (SystemTime::now() - DAY).into());
    let (a, b) = (ca.identity("a", |_| {}), between.identity("b", |_| {}));
    connect(&a, &b, "b").await.0.expect_err("as a server");
    connect(&b, &a, "a").await.1.expect_err("as a client");
}

#[tokio::test]
async fn a_leaf_that_may_sign_revocations_is_refused() {
    assert_refused("may sign certificates", |leaf| {
        leaf.key_usages.push(KeyUsagePurpose::CrlSign);
    })
    .await;
}

#[tokio::test]
async fn a_leaf_that_may_not_sign_is_refused() {
    assert_refused("key usage lacks digital signature", |leaf| {
        leaf.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    })
    .await;
    assert_refused("key usage lacks digital signature", |leaf| leaf.key_usages = vec![]).await;
}

#[tokio::test]
async fn a_leaf_for_another_purpose_is_refused() {
    assert_refused("extended key usage", |leaf| {
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection];
    })
    .await;
}

#[tokio::test]
async fn a_purpose_is_not_needed_but_counts_where_it_is_given() {
    let ca = Ca::new();
    let sound = ca.identity("a", |_| {});
    let without = ca.identity("b", |leaf| leaf.extended_key_usages = vec![]);
    assert_accepted(&sound, &without, "b").await;
    assert_accepted(&without, &sound, "a").await;
    let server = ca.identity("b", |leaf| {
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    assert_accepted(&sound, &server, "b").await;
    connect(&server, &sound, "a").await.1.expect_err("as a client");
}

#[tokio::test]
async fn names_beside_the_one_uri_do_not_matter() {
    let ca = Ca::new();
    let named = ca.identity("b", |leaf| {
        leaf.subject_alt_names.push(SanType::DnsName("a".try_into().unwrap()));
        leaf.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
    });
    assert_accepted(&ca.identity("a", |_| {}), &named, "b").await;
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let _ = aws_lc_rs::default_provider().install_default();
    let ca = Ca::new();
    let (a, b) = (ca.identity("a", |_| {}), ca.identity("b", |_| {}));
    let bare = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verify::PeerVerifier::any(a)))
        .with_no_client_auth();
    let said = handshake(Arc::new(bare), b.server_config()).await.1.unwrap_err().to_string();
    assert!(said.contains("peer sent no certificates"), "{said}");
}

#[tokio::test]
async fn an_older_tls_is_refused() {
    let _ = aws_lc_rs::default_provider().install_default();
    let ca = Ca::new();
    let (a, b) = (ca.identity("a", |_| {}), ca.identity("b", |_| {}));
    let old = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS12])
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verify::PeerVerifier::any(a.clone())))
        .with_client_cert_resolver(Arc::new(Resolver(a)));
    handshake(Arc::new(old), b.server_config()).await.1.unwrap_err();
}

/// What a verifier of `me` whose clock is off by `ahead` seconds says of `peer`.
fn judged(me: &Identity, peer: &Identity, ahead: i64) -> Result<(), String> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now.strict_add_signed(ahead)));
    let verifier = verify::PeerVerifier::any(me.clone());
    let peer = peer.current();
    let (leaf, between) = peer.certified.cert.split_first().unwrap();
    let name = ServerName::try_from("mesh").unwrap();
    let as_server = verifier.verify_server_cert(leaf, between, &name, &[], now).map(drop);
    let as_client = verifier.verify_client_cert(leaf, between, now).map(drop);
    assert_eq!(as_server.is_ok(), as_client.is_ok(), "{as_server:?} {as_client:?}");
    as_server.map_err(|why| why.to_string())
}

#[tokio::test]
async fn a_clock_that_is_off_by_less_than_a_minute_lets_a_new_leaf_in() {
    let _ = aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let ca = live::authority(folder.path(), DAY);
    let (a, b) = (ca.identity("a").await.unwrap(), ca.identity("b").await.unwrap());
    for (ahead, expected) in [(-58, true), (-120, false), (23 * 3600, true), (25 * 3600, false)] {
        let judged = judged(&a, &b, ahead);
        assert_eq!(judged.is_ok(), expected, "{ahead} s: {judged:?}");
    }
}

#[tokio::test]
async fn a_short_leaf_is_good_for_as_long_as_it_says() {
    let _ = aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let ca = live::authority(folder.path(), Duration::from_secs(2));
    let began = SystemTime::now();
    let a = ca.identity("a").await.unwrap().current();
    let (from, to) = (began - Duration::from_secs(2), began + Duration::from_secs(2));
    assert!(from < a.not_before && a.not_before <= began, "{:?}", a.not_before);
    assert!(to <= a.not_after && a.not_after < to + Duration::from_secs(2), "{:?}", a.not_after);
    assert!(a.not_after > a.renew_at() + Duration::from_millis(900), "time to renew it is left");
}
