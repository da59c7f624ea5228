//! How long a peer is trusted: until its leaf expires, or the roots don't vouch
//! for it any more. A connection made on its word ends then.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::server::danger::ClientCertVerifier as _;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{Identity, Material, verify::PeerVerifier};

/// How long a leaf's end is waited for without a look at the clock, which may
/// have been set.
const LOOK: Duration = Duration::from_secs(60);

/// What a handshake is judged by, taken before it begins: a root that is
/// removed meanwhile is noticed.
pub struct Trust {
    identity: Identity,
    judged_by: Arc<Material>,
}

impl Trust {
    pub(super) fn of(identity: &Identity) -> Self {
        let mut identity = identity.clone();
        let judged_by = identity.material.borrow_and_update().clone();
        Self { identity, judged_by }
    }

    /// Waits until the peer of `chain`, leaf first, is to be trusted no longer.
    /// Roots that are added, and a leaf of our own that is renewed, change
    /// nothing for it.
    pub async fn lost(mut self, chain: Vec<CertificateDer<'static>>) {
        let Some(ends) = chain.first().and_then(end) else { return };
        while let Ok(left) = ends.duration_since(SystemTime::now()) {
            tokio::select! {
                () = tokio::time::sleep(left.min(LOOK)) => continue,
                () = self.identity.changed() => {}
            }
            let now = self.identity.current();
            if now.roots_pem != self.judged_by.roots_pem && !vouches_for(&self.identity, &chain) {
                return;
            }
            self.judged_by = now;
        }
    }
}

/// When the leaf expires.
fn end(leaf: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, leaf) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let end = u64::try_from(leaf.validity().not_after.timestamp()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(end))
}

/// Whether the roots of this moment vouch for `chain`. What else makes a party
/// of the mesh was judged in the handshake, and doesn't change.
fn vouches_for(identity: &Identity, chain: &[CertificateDer<'_>]) -> bool {
    let Some((leaf, intermediates)) = chain.split_first() else { return false };
    let verifier = PeerVerifier::any(identity.clone());
    verifier.verify_client_cert(leaf, intermediates, UnixTime::now()).is_ok()
}
