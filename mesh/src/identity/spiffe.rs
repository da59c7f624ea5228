//! SPIFFE ids of the shape Consul Connect gives them:
//! `spiffe://<trust domain>/ns/default/dc/<datacenter>/svc/<name>`. A service of
//! another namespace is another one of the same name, and no party of the mesh.

use std::{fmt, str::FromStr, sync::Arc};

/// The longest name of a service or operator, as in a DNS label.
const MAX_NAME: usize = 63;

/// The namespace that Consul has without its enterprise edition.
const NAMESPACE: &str = "default";

/// A party of the mesh: a service, the gateway, or an operator.
///
/// Equality is on the whole id, trust domain and datacenter included.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    id: Arc<str>,
    trust_domain: std::ops::Range<usize>,
    name: std::ops::Range<usize>,
}

impl SpiffeId {
    /// The id of `name` in `trust_domain`, in the datacenter `dc1`.
    ///
    /// # Errors
    /// When the name isn't 1 to 63 of `a-z`, `0-9` and `-`, or the trust domain
    /// is not a valid one.
    pub fn of_service(trust_domain: &str, name: &str) -> Result<Self, InvalidSpiffeId> {
        format!("spiffe://{trust_domain}/ns/default/dc/dc1/svc/{name}").parse()
    }

    /// The trust domain, in lower case.
    pub fn trust_domain(&self) -> &str {
        &self.id[self.trust_domain.clone()]
    }

    /// The name of the service or operator.
    pub fn name(&self) -> &str {
        &self.id[self.name.clone()]
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.id
    }

    /// Whether this is a person at a command line, not a service.
    pub fn is_operator(&self) -> bool {
        is_operator_name(self.name())
    }
}

/// Whether `name` is an operator's: `operator`, or `operator-` and more. No
/// service may have such a name.
pub fn is_operator_name(name: &str) -> bool {
    name == "operator" || name.starts_with("operator-")
}

/// Why a string is not the id of a party of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not spiffe://<trust domain>/ns/default/dc/<datacenter>/svc/<name>")]
pub struct InvalidSpiffeId(String);

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(id: &str) -> Result<Self, InvalidSpiffeId> {
        let invalid = || InvalidSpiffeId(id.chars().take(256).collect());
        let rest = id.strip_prefix("spiffe://").ok_or_else(invalid)?;
        let mut parts = rest.split('/');
        let trust_domain = parts.next().filter(|d| is_trust_domain(d)).ok_or_else(invalid)?;
        let mut segment = |key: &str| (parts.next() == Some(key)).then(|| parts.next()).flatten();
        segment("ns").filter(|v| *v == NAMESPACE).ok_or_else(invalid)?;
        segment("dc").filter(|v| is_datacenter(v)).ok_or_else(invalid)?;
        let name = segment("svc").filter(|v| is_name(v)).ok_or_else(invalid)?;
        if parts.next().is_some() {
            return Err(invalid());
        }
        let domain_start = "spiffe://".len();
        Ok(Self {
            trust_domain: domain_start..domain_start + trust_domain.len(),
            name: id.len() - name.len()..id.len(),
            id: id.into(),
        })
    }
}

/// The SPIFFE standard's alphabet for trust domains.
fn is_trust_domain(domain: &str) -> bool {
    (1..=255).contains(&domain.len())
        && domain
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b))
}

/// Consul's alphabet for datacenters: a name's, and `_`.
fn is_datacenter(datacenter: &str) -> bool {
    is_name(&datacenter.replace('_', "-"))
}

/// Whether `name` can name a service: 1 to 63 of `a-z`, `0-9` and `-`.
pub fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_its_trust_domain_and_name() {
        let id = SpiffeId::of_service("omnibridge.internal", "hook-receiver").unwrap();
        assert_eq!(id.trust_domain(), "omnibridge.internal");
        assert_eq!(id.name(), "hook-receiver");
        assert_eq!(id.to_string().parse(), Ok(id));
        let id = "spiffe://a/ns/default/dc/eu_west-1/svc/x".parse::<SpiffeId>();
        assert_eq!(id.unwrap().name(), "x");
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        for id in [
            "",
            "spiffe://",
            "https://a/ns/default/dc/dc1/svc/x",
            "spiffe://a/ns/default/dc/dc1/svc/",
            "spiffe://a/ns/default/dc/dc1/svc/x/y",
            "spiffe://a/ns/default/svc/x",
            "spiffe://A/ns/default/dc/dc1/svc/x",
            "spiffe://a/ns/default/dc/dc1/svc/X",
            "spiffe://a@b/ns/default/dc/dc1/svc/x",
            "spiffe://a/ns/../dc/dc1/svc/x",
            "spiffe://a/ns/other/dc/dc1/svc/x",
            "spiffe://a/ns/default/dc/DC1/svc/x",
            "spiffe://a/ap/p/ns/default/dc/dc1/svc/x",
            "spiffe://a/ns/default/dc/dc1/svc/x?y",
            "spiffe://a/ns/default/dc/dc1/svc/%78",
        ] {
            assert!(id.parse::<SpiffeId>().is_err(), "{id}");
        }
    }

    #[test]
    fn operators_are_told_from_services() {
        for (name, operator) in [("operator", true), ("operator-ann", true), ("operators", false)] {
            assert_eq!(SpiffeId::of_service("d", name).unwrap().is_operator(), operator);
        }
    }
}
