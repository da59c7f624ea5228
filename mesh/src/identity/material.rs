//! One leaf with its key and the roots, checked when it is made.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    RootCertStore, client::verify_server_cert_signed_by_trust_anchor, crypto::aws_lc_rs,
    server::ParsedCertificate, sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject};

use super::{SpiffeId, verify};
use crate::Error;

/// A leaf certificate with its key and the roots to judge others by.
pub struct Material {
    /// Whose it is.
    pub id: SpiffeId,
    /// The leaf's serial number in hexadecimal.
    pub serial: String,
    /// When the leaf begins to be valid.
    pub not_before: SystemTime,
    /// When the leaf ends being valid.
    pub not_after: SystemTime,
    pub(super) certified: Arc<CertifiedKey>,
    pub(super) roots: Arc<RootCertStore>,
    /// The roots as they were given, in PEM.
    pub roots_pem: String,
}

impl Material {
    /// Checks and takes in a leaf (its whole chain, leaf first), its key and
    /// the roots, all in PEM.
    ///
    /// # Errors
    /// When a part can't be parsed, leaf and key don't belong together, or the
    /// leaf isn't an X.509-SVID.
    pub fn from_pem(chain: &str, key: &str, roots: &str) -> Result<Self, Error> {
        let invalid = |what: &str, why: &dyn std::fmt::Display| {
            Error::Identity(format!("the {what} is not usable: {why}"))
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|e| invalid("leaf", &e))?;
        let leaf = chain.first().ok_or_else(|| invalid("leaf", &"there is none"))?;
        let id = verify::peer_id(leaf).map_err(|e| invalid("leaf", &e))?;
        let (serial, not_before, not_after) = {
            let (_, leaf) =
                x509_parser::parse_x509_certificate(leaf).map_err(|e| invalid("leaf", &e))?;
            let at = |t: x509_parser::time::ASN1Time| {
                SystemTime::UNIX_EPOCH
                    + Duration::from_secs(u64::try_from(t.timestamp()).unwrap_or_default())
            };
            let validity = leaf.validity();
            (hex::encode(leaf.raw_serial()), at(validity.not_before), at(validity.not_after))
        };
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| invalid("key", &e))?;
        let certified = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
            .map_err(|e| invalid("key", &e))?;
        let mut store = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
            let root = root.map_err(|e| invalid("root", &e))?;
            store.add(root).map_err(|e| invalid("root", &e))?;
        }
        if store.is_empty() {
            return Err(invalid("root", &"there is none"));
        }
        Ok(Self {
            id,
            serial,
            not_before,
            not_after,
            certified: Arc::new(certified),
            roots: Arc::new(store),
            roots_pem: roots.to_owned(),
        })
    }

    /// Whether the leaf's chain ends in one of the roots. The time counts only
    /// as far as the leaf's own: a clock that is wrong is no wrong chain.
    pub(super) fn is_vouched_for(&self) -> bool {
        let at = SystemTime::now().clamp(self.not_before, self.not_after.max(self.not_before));
        let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let Some((leaf, intermediates)) = self.certified.cert.split_first() else { return false };
        ParsedCertificate::try_from(leaf).is_ok_and(|leaf| {
            verify_server_cert_signed_by_trust_anchor(
                &leaf,
                &self.roots,
                intermediates,
                UnixTime::since_unix_epoch(at),
                aws_lc_rs::default_provider().signature_verification_algorithms.all,
            )
            .is_ok()
        })
    }

    /// Half of the leaf's life: the time to ask for the next one.
    pub fn renew_at(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + life / 2
    }
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material").field("id", &self.id).field("serial", &self.serial).finish()
    }
}
