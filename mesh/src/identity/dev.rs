//! The authority for one machine: a CA of our own under the data directory.
//!
//! Every process that can read the CA's key makes its own leafs. `ca/roots.pem`
//! is what all trust, newest first; `ca/signer.pem` is the newest root's key,
//! its certificate, and that certificate signed by the root before it. Leafs
//! carry the latter, so that a process that hasn't read the new root yet
//! trusts them as well: a rotation fails no handshake.

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
/// Clocks of processes on one machine agree; this is for containers that were
/// paused.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// The CA under the data directory.
pub struct DevAuthority {
    folder: PathBuf,
    leaf_ttl: Duration,
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
        let id = SpiffeId::of_service(TRUST_DOMAIN, name)
            .map_err(|why| Error::Identity(why.to_string()))?;
        let signer = self.read("signer.pem")?;
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
        set_validity(&mut params, self.leaf_ttl);
        let leaf = params.signed_by(&key, &issuer(&signer)?).map_err(failed)?;
        let cross = certificates(&signer)?.into_iter().skip(1).map(|c| to_pem(&c));
        Ok(Issued {
            chain: leaf.pem() + &cross.collect::<String>(),
            key: key.serialize_pem(),
            roots: self.read("roots.pem")?,
        })
    }

    /// Keeps a leaf for `name` in `folder`, for programs that read files: issues it
    /// anew at half its life, and when the roots change. Runs until dropped.
    ///
    /// # Errors
    /// When the CA's folder can't be watched, or the first leaf can't be written.
    pub async fn keep_issued(&self, name: &str, folder: &Path) -> Result<(), Error> {
        let mut changes = files::watch(&self.folder)?;
        let mut roots = String::new();
        loop {
            let due = tokio::time::sleep(self.leaf_ttl / 2);
            tokio::pin!(due);
            let issued = self.issue(name)?;
            roots.clone_from(&issued.roots);
            write_issued(&issued, folder)?;
            loop {
                tokio::select! {
                    () = &mut due => break,
                    () = changes.changed() => {
                        if self.read("roots.pem").is_ok_and(|now| now != roots) {
                            break;
                        }
                    }
                }
            }
        }
    }

    fn material(&self, name: &str) -> Result<Material, Error> {
        let issued = self.issue(name)?;
        Material::from_pem(&issued.chain, &issued.key, &issued.roots)
    }

    fn read(&self, file: &str) -> Result<String, Error> {
        let path = self.folder.join(file);
        std::fs::read_to_string(&path).map_err(Error::file(path))
    }

    /// Renews the leaf of `name` at half its life, and at once when the roots
    /// change, as long as somebody listens.
    async fn renew(
        self,
        name: String,
        material: watch::Sender<Arc<Material>>,
        mut changes: files::Changes,
    ) {
        loop {
            let due = material.borrow().renew_at();
            let wait = due.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = changes.changed() => {
                    let roots = self.read("roots.pem").unwrap_or_default();
                    if roots.is_empty() || roots == material.borrow().roots_pem {
                        continue;
                    }
                }
                () = material.closed() => return,
            }
            match self.material(&name) {
                Ok(next) => {
                    tracing::info!(id = %next.id, serial = %next.serial, "leaf renewed");
                    material.send_replace(Arc::new(next));
                }
                Err(why) => {
                    tracing::error!(%name, %why, "the leaf can't be renewed; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

#[async_trait]
impl Authority for DevAuthority {
    async fn identity(&self, name: &str) -> Result<Identity, Error> {
        let changes = files::watch(&self.folder)?;
        let (material, watched) = watch::channel(Arc::new(self.material(name)?));
        let own = Self { folder: self.folder.clone(), leaf_ttl: self.leaf_ttl };
        tokio::spawn(own.renew(name.to_owned(), material, changes));
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
    params.not_after = (now + ttl).into();
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
