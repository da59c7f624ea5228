//! Who may send webhooks, and how each proves that a webhook is its own.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use mesh::Error;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use uuid::Uuid;

use crate::{
    config::{SchemeName, SourceSettings},
    problem::Problem,
    sensitive::Sensitive,
};

const HUB_SIGNATURE: HeaderName = HeaderName::from_static("x-hub-signature-256");
pub(crate) const GITHUB_DELIVERY: HeaderName = HeaderName::from_static("x-github-delivery");
pub(crate) const GITHUB_EVENT: HeaderName = HeaderName::from_static("x-github-event");
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
pub(crate) const DELIVERY_ID: HeaderName = HeaderName::from_static("x-delivery-id");
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
pub(crate) const EVENT_TYPE: HeaderName = HeaderName::from_static("x-event-type");

/// How many characters a source's name, and an id or a type, may have.
const MAX_NAME: usize = 63;
const MAX_TEXT: usize = 255;
/// The type of a webhook that doesn't say any.
const DEFAULT_TYPE: &str = "webhook";

/// The configured sources.
pub(crate) struct Sources {
    by_name: HashMap<String, Source>,
}

/// One who may send webhooks.
pub(crate) struct Source {
    /// Its name, as in the path.
    pub(crate) name: Arc<str>,
    scheme: Scheme,
    /// What its webhooks hold that must not be kept.
    pub(crate) sensitive: Sensitive,
}

enum Scheme {
    /// HMAC-SHA256 of the body. The key is already in it.
    Github(Hmac<Sha256>),
    /// The SHA-256 of the key that is sent.
    ApiKey([u8; 32]),
}

/// What is left to be checked when the body is there.
#[must_use = "a webhook isn't proved before this is verified"]
pub(crate) enum Proof<'s> {
    /// Nothing: the key was right.
    Done,
    /// Whether this is the body's signature.
    Signature(&'s Hmac<Sha256>, [u8; 32]),
}

/// What a source says of one webhook.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// Its id, unique within the source.
    pub(crate) id: String,
    /// What happened.
    pub(crate) kind: String,
}

impl Sources {
    /// The sources of these settings.
    ///
    /// # Errors
    /// Names the setting that can't be used.
    pub(crate) fn try_new(
        settings: &BTreeMap<String, SourceSettings>,
        hash_secret: Option<&SecretString>,
    ) -> Result<Self, Error> {
        if settings.is_empty() {
            tracing::warn!("no source may send webhooks: set `hooks.sources.NAME.scheme`");
        }
        let sources = settings.iter().map(|(name, settings)| {
            Source::try_new(name, settings, hash_secret).map(|source| (name.clone(), source))
        });
        Ok(Self { by_name: sources.collect::<Result<_, Error>>()? })
    }

    /// The source of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&Source> {
        self.by_name.get(name)
    }
}

impl Source {
    fn try_new(
        name: &str,
        settings: &SourceSettings,
        hash_secret: Option<&SecretString>,
    ) -> Result<Self, Error> {
        let key = |setting: &str| format!("hooks.sources.{name}.{setting}");
        let valid = (1..=MAX_NAME).contains(&name.len())
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !valid {
            let rule = format!(
                "a source's name has 1 to {MAX_NAME} of a-z, 0-9 and `-`, beginning with a letter"
            );
            return Err(Error::setting(format!("hooks.sources.{name}"), name, rule));
        }
        let unused = |given: bool, setting: &str| match given {
            true => Err(Error::setting(key(setting), "********", "its scheme doesn't use it")),
            false => Ok(()),
        };
        let scheme = match settings.scheme {
            SchemeName::Github => {
                unused(settings.key_sha256.is_some(), "key_sha256")?;
                let secret = secret(settings, key)?;
                let mac = Hmac::new_from_slice(secret.expose_secret().as_bytes());
                Scheme::Github(mac.map_err(|why| Error::setting(key("secret"), "********", why))?)
            }
            SchemeName::ApiKey => {
                unused(settings.secret.is_some(), "secret")?;
                unused(settings.secret_file.is_some(), "secret_file")?;
                let text = settings.key_sha256.as_deref().unwrap_or_default();
                let mut digest = [0; 32];
                hex::decode_to_slice(text, &mut digest).map_err(|_| {
                    let cause = "expected the key's SHA-256, 64 hexadecimal digits";
                    Error::setting(key("key_sha256"), text, cause)
                })?;
                Scheme::ApiKey(digest)
            }
        };
        let sensitive = Sensitive::try_new(&key("sensitive"), &settings.sensitive, hash_secret)?;
        Ok(Self { name: name.into(), scheme, sensitive })
    }

    /// Checks what the headers prove, and says what the body has to.
    ///
    /// # Errors
    /// 401, where they prove nothing.
    pub(crate) fn authenticate(&self, headers: &HeaderMap) -> Result<Proof<'_>, Problem> {
        match &self.scheme {
            Scheme::Github(mac) => {
                let value = one(headers, &HUB_SIGNATURE).ok_or_else(unsigned)?;
                let digits = value.as_bytes().strip_prefix(b"sha256=").ok_or_else(unsigned)?;
                let mut signature = [0; 32];
                hex::decode_to_slice(digits, &mut signature).map_err(|_| unsigned())?;
                Ok(Proof::Signature(mac, signature))
            }
            Scheme::ApiKey(digest) => {
                let value = one(headers, &API_KEY).ok_or_else(wrong_key)?;
                let given = Sha256::digest(value.as_bytes());
                // Digests are compared, so that time tells nothing of the key.
                match bool::from(given.as_slice().ct_eq(digest)) {
                    true => Ok(Proof::Done),
                    false => Err(wrong_key()),
                }
            }
        }
    }

    /// Which webhook this is.
    ///
    /// # Errors
    /// 400, where the source doesn't say so in the way of its scheme.
    pub(crate) fn delivery(&self, headers: &HeaderMap) -> Result<Delivery, Problem> {
        match self.scheme {
            Scheme::Github(_) => {
                let required = |name: HeaderName| {
                    let missing = || bad(format!("`{name}` is missing"));
                    text(headers, &name)?.ok_or_else(missing)
                };
                Ok(Delivery { id: required(GITHUB_DELIVERY)?, kind: required(GITHUB_EVENT)? })
            }
            Scheme::ApiKey(_) => {
                let id = match text(headers, &DELIVERY_ID)? {
                    Some(id) => Some(id),
                    None => text(headers, &IDEMPOTENCY_KEY)?,
                };
                Ok(Delivery {
                    id: id.unwrap_or_else(|| Uuid::now_v7().to_string()),
                    kind: text(headers, &EVENT_TYPE)?.unwrap_or_else(|| DEFAULT_TYPE.to_owned()),
                })
            }
        }
    }
}

impl Proof<'_> {
    /// Verifies it against `body`, byte for byte as received.
    ///
    /// # Errors
    /// 401, where it isn't this body's.
    pub(crate) fn verify(self, body: &[u8]) -> Result<(), Problem> {
        match self {
            Self::Done => Ok(()),
            Self::Signature(mac, signature) => {
                mac.clone().chain_update(body).verify_slice(&signature).map_err(|_| unsigned())
            }
        }
    }
}

fn secret(settings: &SourceSettings, key: impl Fn(&str) -> String) -> Result<SecretString, Error> {
    let (setting, secret) = match (&settings.secret, &settings.secret_file) {
        (Some(secret), None) => ("secret", secret.clone()),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).map_err(|why| {
                Error::setting(key("secret_file"), path.display().to_string(), why)
            })?;
            // Editors end the last line; nobody means that as a part of it.
            ("secret_file", text.trim_end_matches(['\r', '\n']).into())
        }
        _ => {
            let cause = "expected either `secret` or `secret_file`";
            return Err(Error::setting(key("secret"), "", cause));
        }
    };
    if secret.expose_secret().is_empty() {
        return Err(Error::setting(key(setting), "", "is empty: anybody could sign with it"));
    }
    Ok(secret)
}

/// The only value of `name`; of several, which is meant isn't known.
fn one<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// The value of `name` where it is there, as an id or a type.
fn text(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, Problem> {
    if !headers.contains_key(name) {
        return Ok(None);
    }
    let value = one(headers, name).and_then(|value| value.to_str().ok());
    let valid = |text: &&str| {
        (1..=MAX_TEXT).contains(&text.len()) && !text.contains(|c: char| c.is_control())
    };
    match value.filter(valid) {
        Some(text) => Ok(Some(text.to_owned())),
        None => Err(bad(format!("`{name}` must be one value of 1 to {MAX_TEXT} characters"))),
    }
}

fn bad(detail: String) -> Problem {
    Problem::request(StatusCode::BAD_REQUEST, detail)
}

fn unsigned() -> Problem {
    let detail = "`x-hub-signature-256` is missing or isn't this body's signature";
    let scheme = HeaderValue::from_static("HubSignature header=\"X-Hub-Signature-256\"");
    Problem::request(StatusCode::UNAUTHORIZED, detail).with(header::WWW_AUTHENTICATE, scheme)
}

fn wrong_key() -> Problem {
    let scheme = HeaderValue::from_static("ApiKey header=\"X-API-Key\"");
    Problem::request(StatusCode::UNAUTHORIZED, "`x-api-key` is missing or isn't the source's key")
        .with(header::WWW_AUTHENTICATE, scheme)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SensitiveSettings;

    // GitHub's published example: "Validating webhook deliveries".
    const SECRET: &str = "It's a Secret to Everybody";
    const BODY: &[u8] = b"Hello, World!";
    const SIGNATURE: &str =
        "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    fn settings(scheme: SchemeName) -> SourceSettings {
        SourceSettings {
            scheme,
            secret: None,
            secret_file: None,
            key_sha256: None,
            sensitive: SensitiveSettings::default(),
        }
    }

    fn github() -> Source {
        let settings =
            SourceSettings { secret: Some(SECRET.into()), ..settings(SchemeName::Github) };
        Source::try_new("github", &settings, None).unwrap()
    }

    fn api_key(key: &str) -> Source {
        let digest = hex::encode(Sha256::digest(key));
        let settings = SourceSettings { key_sha256: Some(digest), ..settings(SchemeName::ApiKey) };
        Source::try_new("own", &settings, None).unwrap()
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn proves(source: &Source, pairs: &[(&'static str, &str)], body: &[u8]) -> bool {
        source.authenticate(&headers(pairs)).and_then(|proof| proof.verify(body)).is_ok()
    }

    #[test]
    fn githubs_example_is_verified() {
        assert!(proves(&github(), &[("x-hub-signature-256", SIGNATURE)], BODY));
    }

    #[test]
    fn what_isnt_the_bodys_signature_proves_nothing() {
        let name = "x-hub-signature-256";
        assert!(!proves(&github(), &[(name, SIGNATURE)], b"Hello, World"));
        assert!(!proves(&github(), &[], BODY));
        assert!(!proves(&github(), &[(name, SIGNATURE), (name, SIGNATURE)], BODY));
        let digits = &SIGNATURE["sha256=".len()..];
        for wrong in [
            "",
            "sha256=",
            digits,
            &format!("sha1={digits}"),
            &format!("sha256={}", &digits[..62]),
            &format!("sha256={}00", digits),
            &format!("sha256={}", "0".repeat(64)),
        ] {
            assert!(!proves(&github(), &[(name, wrong)], BODY), "{wrong}");
        }
    }

    #[test]
    fn only_the_key_itself_proves() {
        let own = api_key("k-123");
        assert!(proves(&own, &[("x-api-key", "k-123")], b""));
        for wrong in ["", "k-12", "k-1234", &hex::encode(Sha256::digest("k-123"))] {
            assert!(!proves(&own, &[("x-api-key", wrong)], b""), "{wrong}");
        }
        assert!(!proves(&own, &[], b""));
    }

    #[test]
    fn a_delivery_is_named_as_the_scheme_says() {
        let delivery = |source: &Source, pairs: &[(&'static str, &str)]| {
            source.delivery(&headers(pairs)).ok().map(|d| (d.id, d.kind))
        };
        let named = |id: &str, kind: &str| Some((id.to_owned(), kind.to_owned()));
        let both = [("x-github-delivery", "7"), ("x-github-event", "push")];
        assert_eq!(delivery(&github(), &both), named("7", "push"));
        assert_eq!(delivery(&github(), &both[..1]), None);
        assert_eq!(delivery(&github(), &both[1..]), None);

        let own = api_key("k");
        let key = ("idempotency-key", "a");
        assert_eq!(delivery(&own, &[key]), named("a", "webhook"));
        let all = [key, ("x-delivery-id", "b"), ("x-event-type", "paid")];
        assert_eq!(delivery(&own, &all), named("b", "paid"));
        let (made, _) = delivery(&own, &[]).unwrap();
        assert_eq!(made.parse::<Uuid>().unwrap().get_version_num(), 7);
        assert_eq!(delivery(&own, &[("x-delivery-id", "")]), None);
        assert_eq!(delivery(&own, &[("x-delivery-id", &"x".repeat(256))]), None);
    }

    #[test]
    fn a_source_that_couldnt_be_checked_is_refused_by_its_setting() {
        let github = || settings(SchemeName::Github);
        let api_key = || settings(SchemeName::ApiKey);
        let missing = Some("/nowhere/secret".into());
        for (name, settings, key) in [
            ("a", github(), "hooks.sources.a.secret`"),
            ("a", SourceSettings { secret: Some("".into()), ..github() }, "a.secret`"),
            ("a", SourceSettings { secret_file: missing, ..github() }, "a.secret_file`"),
            (
                "a",
                SourceSettings {
                    secret: Some("s".into()),
                    key_sha256: Some("00".into()),
                    ..github()
                },
                "a.key_sha256`",
            ),
            ("a", api_key(), "a.key_sha256`"),
            ("a", SourceSettings { key_sha256: Some("00".into()), ..api_key() }, "a.key_sha256`"),
            ("a", SourceSettings { secret: Some("s".into()), ..api_key() }, "a.secret`"),
            ("A", github(), "hooks.sources.A`"),
            ("9a", github(), "hooks.sources.9a`"),
        ] {
            let error = Source::try_new(name, &settings, None).err().unwrap().to_string();
            assert!(error.contains(key), "{error}");
            assert!(!error.contains("`s`"), "{error}");
        }
    }

    #[test]
    fn a_secret_is_read_from_its_file_without_the_end_of_its_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{SECRET}\n")).unwrap();
        let path = Some(file.path().to_owned());
        let settings = SourceSettings { secret_file: path, ..settings(SchemeName::Github) };
        let source = Source::try_new("github", &settings, None).unwrap();
        assert!(proves(&source, &[("x-hub-signature-256", SIGNATURE)], BODY));
    }
}
