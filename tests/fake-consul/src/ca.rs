//! A Connect CA whose certificates have the shape of Consul's: a leaf has an
//! empty subject and one URI, critical; after a rotation its chain holds the
//! new root signed by the old one.

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};

/// How many roots are trusted at once.
const TRUSTED_ROOTS: usize = 3;

/// A Connect CA.
pub struct ConnectCa {
    trust_domain: String,
    /// The active one first.
    roots: Vec<Root>,
    /// The active root signed by the one before it.
    cross_signed: Option<String>,
    serial: u64,
}

struct Root {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl ConnectCa {
    /// A CA with a trust domain and a root of its own.
    pub fn new() -> Self {
        let mut ca = Self {
            trust_domain: format!("{}.consul", uuid::Uuid::now_v7()),
            roots: vec![],
            cross_signed: None,
            serial: 1,
        };
        ca.rotate();
        ca
    }

    /// Makes a new root and signs with it from now on.
    ///
    /// # Panics
    /// Never: the parameters are those of a valid CA.
    pub fn rotate(&mut self) {
        self.serial += 1;
        let name = format!("pri-{}.consul.ca.{}", self.serial, self.trust_domain);
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = vec![uri(&format!("spiffe://{}", self.trust_domain))];
        params.serial_number = Some(self.serial.into());
        let key = KeyPair::generate().expect("the system has randomness");
        let certificate = params.self_signed(&key).expect("a valid CA");
        self.cross_signed = self.roots.first().map(|before| {
            let cross = params.signed_by(&key, &before.issuer);
            cross.expect("a valid CA").pem()
        });
        let issuer = Issuer::new(params, key);
        self.roots.insert(0, Root { certificate, issuer });
        self.roots.truncate(TRUSTED_ROOTS);
    }

    /// The trust domain of all ids.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The certificates of all trusted roots in PEM, the active one first.
    pub fn roots(&self) -> Vec<String> {
        self.roots.iter().map(|r| r.certificate.pem()).collect()
    }

    /// A leaf for `service`, in the form of `agent/connect/ca/leaf`.
    ///
    /// # Panics
    /// When `service` isn't ASCII.
    pub fn leaf(&mut self, service: &str) -> Value {
        let id = format!("spiffe://{}/ns/default/dc/dc1/svc/{service}", self.trust_domain);
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::DataEncipherment,
            KeyUsagePurpose::KeyAgreement,
        ];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri(&id)];
        params.use_authority_key_identifier_extension = true;
        self.serial += 1;
        params.serial_number = Some(self.serial.into());
        let key = KeyPair::generate().expect("the system has randomness");
        let leaf = params.signed_by(&key, &self.roots[0].issuer).expect("a valid leaf");
        let chain = leaf.pem() + self.cross_signed.as_deref().unwrap_or_default();
        json!({
            "SerialNumber": format!("{:02x}", self.serial),
            "CertPEM": chain,
            "PrivateKeyPEM": key.serialize_pem(),
            "Service": service,
            "ServiceURI": id,
        })
    }

    /// The roots, in the form of `agent/connect/ca/roots`.
    pub fn describe_roots(&self) -> Value {
        let describe = |(n, pem): (usize, String)| {
            json!({
                "Name": "Consul CA Root Cert",
                "RootCert": pem,
                "IntermediateCerts": self.cross_signed.iter().filter(|_| n == 0).collect::<Vec<_>>(),
                "Active": n == 0,
            })
        };
        let roots: Vec<Value> = self.roots().into_iter().enumerate().map(describe).collect();
        json!({ "TrustDomain": self.trust_domain, "Roots": roots })
    }
}

impl Default for ConnectCa {
    fn default() -> Self {
        Self::new()
    }
}

fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().expect("an id is ASCII"))
}
