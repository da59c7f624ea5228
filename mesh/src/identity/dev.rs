//! The authority for one machine: a CA of our own under the data directory.
//!
//! Every process that can read the CA's key makes its own leafs. `ca/roots.pem`
//! is what all trust, newest first; `ca/signer.pem` is the newest root's key,
//! its certificate, that certificate signed by the root before it, and that
//! one's likewise. Leafs carry the latter two, so that a process that hasn't
//! read the new roots yet trusts them as well: a rotation fails no handshake.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio::sync::watch;

use super::{Authority, Identity, Material, SpiffeId};
use crate::{Error, config::Config, files};

/// The trust domain of every `dev` mesh.
pub const TRUST_DOMAIN: &str = "omnibridge.internal";

/// How long a root is valid.
const ROOT_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How many roots are trusted at once: the newest and those whose leafs may
/// still be in use.
const TRUSTED_ROOTS: usize = 3;
/// How long to wait where the CA's files can't be read.
const RETRY: Duration = Duration::from_millis(250);
/// Clocks of processes on one machine agree; this is for containers that were
/// paused.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// The CA under the data directory.
pub struct DevAuthority {
    folder: PathBuf,
    pub(super) leaf_ttl: Duration,
}

/// A leaf with its key and the roots, in PEM, as `omni certs issue` writes it.
pub struct Issued {
    /// The chain, leaf first.
    pub chain: String,
    /// The leaf's key, PKCS #8.
    pub key: String,
    /// The roots to judge others by.
    pub roots: String,
}

impl DevAuthority {
    /// Opens the CA under the data directory, and makes it where there is none.
    ///
    /// # Errors
    /// When its files can't be read or written.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let folder = config.data.join("ca");
        files::make_folder(&folder)?;
        let authority = Self { folder, leaf_ttl: config.dev_identity.leaf_ttl };
        let _lock = files::lock(&authority.folder.join("lock"))?;
        if !authority.folder.join("signer.pem").exists() {
            authority.make_root()?;
        }
        Ok(authority)
    }

    /// Makes a new root and signs with it from now on. Processes notice and
    /// renew their leafs by themselves.
    ///
    /// # Errors
    /// When the files can't be written.
    pub fn rotate(&self) -> Result<(), Error> {
        let _lock = files::lock(&self.folder.join("lock"))?;
        self.make_root()
    }

    fn make_root(&self) -> Result<(), Error> {
        let before = self.read("signer.pem").ok();
        let key = KeyPair::generate().map_err(failed)?;
        let serial = uuid::Uuid::now_v7();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial.as_bytes().to_vec().into());
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("OmniBridge dev CA {serial}"));
        set_validity(&mut params, ROOT_TTL);
        let root = params.self_signed(&key).map_err(failed)?.pem();

        let mut roots = root.clone();
        let mut signer = format!("{}{root}", key.serialize_pem());
        if let Some(before) = before {
            let issuer = issuer(&before)?;
            signer += &params.signed_by(&key, &issuer).map_err(failed)?.pem();
            // Enough to lead back to the oldest root that is trusted.
            for cross in certificates(&before)?.iter().skip(1).take(TRUSTED_ROOTS - 2) {
                signer += &to_pem(cross);
            }
            for old in certificates(&self.read("roots.pem")?)?.iter().take(TRUSTED_ROOTS - 1) {
                roots += &to_pem(old);
            }
        }
        // Trusted first, used then.
        files::replace(&self.folder.join("roots.pem"), roots.as_bytes())?;
        files::replace(&self.folder.join("signer.pem"), signer.as_bytes())
    }

    /// Makes a leaf for the service or operator `name`.
    ///
    /// # Errors
    /// When the name can't be one, or the CA's files can't be read.
    pub fn issue(&self, name: &str) -> Result<Issued, Error> {
        self.files()?.issue(name, self.leaf_ttl)
    }

    /// Keeps a leaf for `name` in `folder`, for programs that read files: issues it
    /// anew at half its life, and when the roots change. Runs until dropped.
    ///
    /// # Errors
    /// When the CA's folder can't be watched, or the first leaf can't be written.
    pub async fn keep_issued(&self, name: &str, folder: &Path) -> Result<(), Error> {
        let mut changes = files::watch(&self.folder)?;
        loop {
            let due = tokio::time::sleep(self.leaf_ttl / 2);
            tokio::pin!(due);
            let made_by = self.files()?;
            write_issued(&made_by.issue(name, self.leaf_ttl)?, folder)?;
            loop {
                tokio::select! {
                    () = &mut due => break,
                    () = changes.changed() => {
                        if self.files().is_ok_and(|now| now != made_by) {
                            break;
                        }
                    }
                }
            }
        }
    }

    fn files(&self) -> Result<Files, Error> {
        // The signer first: its root is among those that are read after it.
        Ok(Files { signer: self.read("signer.pem")?, roots: self.read("roots.pem")? })
    }

    fn read(&self, file: &str) -> Result<String, Error> {
        let path = self.folder.join(file);
        std::fs::read_to_string(&path).map_err(Error::file(path))
    }

    /// Renews the leaf of `name` at half its life, and at once when the CA's
    /// files change, as long as somebody listens.
    async fn renew(
        self,
        name: String,
        mut made_by: Files,
        material: watch::Sender<Arc<Material>>,
        mut changes: files::Changes,
    ) {
        loop {
            let due = material.borrow().renew_at();
            let wait = due.duration_since(SystemTime::now()).unwrap_or_default();
            let renewed = tokio::select! {
                () = tokio::time::sleep(wait) => self.files(),
                () = changes.changed() => match self.files() {
                    // A clock that was set shows here: it is looked at anew.
                    Ok(now) if now == made_by => continue,
                    now => now,
                },
                () = material.closed() => return,
            };
            let renewed = renewed.and_then(|now| Ok((now.material(&name, self.leaf_ttl)?, now)));
            match renewed {
                Ok((next, now)) => {
                    tracing::info!(id = %next.id, serial = %next.serial, "leaf renewed");
                    made_by = now;
                    material.send_replace(Arc::new(next));
                }
                Err(why) => {
                    tracing::error!(%name, %why, "the leaf can't be renewed; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

/// The CA's files at one moment: a leaf has to be replaced when either changes.
#[derive(PartialEq, Eq)]
struct Files {
    signer: String,
    roots: String,
}

impl Files {
    fn issue(&self, name: &str, ttl: Duration) -> Result<Issued, Error> {
        let id = SpiffeId::of_service(TRUST_DOMAIN, name)
            .map_err(|why| Error::Identity(why.to_string()))?;
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(uuid::Uuid::now_v7().as_bytes().to_vec().into());
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        let text = |s: &str| s.try_into().map_err(failed);
        params.subject_alt_names = vec![
            SanType::URI(text(id.as_str())?),
            SanType::DnsName(text("localhost")?),
            SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()),
            SanType::IpAddress(std::net::Ipv6Addr::LOCALHOST.into()),
        ];
        set_validity(&mut params, ttl);
        let leaf = params.signed_by(&key, &issuer(&self.signer)?).map_err(failed)?;
        let cross = certificates(&self.signer)?.into_iter().skip(1).map(|c| to_pem(&c));
        Ok(Issued {
            chain: leaf.pem() + &cross.collect::<String>(),
            key: key.serialize_pem(),
            roots: self.roots.clone(),
        })
    }

    fn material(&self, name: &str, ttl: Duration) -> Result<Material, Error> {
        let issued = self.issue(name, ttl)?;
        Material::from_pem(&issued.chain, &issued.key, &issued.roots)
    }
}

#[async_trait]
impl Authority for DevAuthority {
    async fn identity(&self, name: &str) -> Result<Identity, Error> {
        let changes = files::watch(&self.folder)?;
        let made_by = self.files()?;
        let first = made_by.material(name, self.leaf_ttl)?;
        let (material, watched) = watch::channel(Arc::new(first));
        let own = Self { folder: self.folder.clone(), leaf_ttl: self.leaf_ttl };
        tokio::spawn(own.renew(name.to_owned(), made_by, material, changes));
        Ok(Identity::new(watched))
    }
}

/// The issuer whose key and certificate lead `signer`.
fn issuer(signer: &str) -> Result<Issuer<'static, KeyPair>, Error> {
    let key = KeyPair::from_pem(signer).map_err(failed)?;
    let certificates = certificates(signer)?;
    let root = certificates.first().ok_or_else(|| failed("ca/signer.pem has no certificate"))?;
    Issuer::from_ca_cert_der(root, key).map_err(failed)
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(failed)
}

fn to_pem(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(certificate);
    let lines: Vec<&str> =
        (0..body.len()).step_by(64).map(|i| &body[i..body.len().min(i + 64)]).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

fn set_validity(params: &mut CertificateParams, ttl: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW.min(ttl / 10)).into();
    // A certificate has whole seconds, cut off: a leaf of two seconds must not
    // live for one.
    params.not_after = (now + ttl + Duration::from_millis(999)).into();
}

fn failed(why: impl std::fmt::Display) -> Error {
    Error::Identity(format!("the dev CA: {why}"))
}

/// Writes `issued` as cert.pem, key.pem and roots.pem into `folder`.
///
/// # Errors
/// When the files can't be written.
pub fn write_issued(issued: &Issued, folder: &Path) -> Result<(), Error> {
    files::make_folder(folder)?;
    files::replace(&folder.join("cert.pem"), issued.chain.as_bytes())?;
    files::replace(&folder.join("key.pem"), issued.key.as_bytes())?;
    files::replace(&folder.join("roots.pem"), issued.roots.as_bytes())
}
