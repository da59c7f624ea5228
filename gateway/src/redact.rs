//! Takes the secrets out of a request's headers before they are handed on.

use std::{borrow::Cow, collections::HashSet};

use http::{HeaderMap, HeaderName, StatusCode};
use mesh::messages::common::v1::Header;

use crate::problem::Problem;

/// How many headers a request may have; hook-receiver takes no more.
const MAX_HEADERS: usize = 128;
/// How many bytes all names and values together may have.
const MAX_BYTES: usize = 16 * 1024;
/// What stands in a secret's place.
pub(crate) const REDACTED: &str = "[redacted]";
/// What a name with one of these in it holds is taken for a secret. They also
/// cover `proxy-authorization`, `set-cookie`, `x-api-key` and
/// `x-hub-signature-256`.
const SECRET_NAMES: [&str; 9] = [
    "authorization",
    "cookie",
    "credential",
    "jwt",
    "key",
    "password",
    "secret",
    "signature",
    "token",
];

/// The headers as they are handed on, without secrets and what else is
/// `sensitive`.
pub(crate) fn headers(
    headers: &HeaderMap,
    sensitive: &HashSet<HeaderName>,
) -> Result<Vec<Header>, Problem> {
    if headers.len() > MAX_HEADERS {
        return Err(too_large(format!("more than {MAX_HEADERS} headers")));
    }
    let mut bytes = 0;
    let mut redacted = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        bytes += name.as_str().len() + value.len();
        if bytes > MAX_BYTES {
            return Err(too_large(format!("more than {MAX_BYTES} bytes of headers")));
        }
        let value = if is_secret(name) || sensitive.contains(name) {
            Cow::Borrowed(REDACTED)
        } else {
            value
        };
        redacted.push(Header { name: name.as_str().to_owned(), value: value.into_owned() });
    }
    Ok(redacted)
}

fn is_secret(name: &HeaderName) -> bool {
    SECRET_NAMES.iter().any(|part| name.as_str().contains(part))
}

fn too_large(detail: String) -> Problem {
    Problem::request(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, detail)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn map(pairs: &[(&str, &[u8])]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value).unwrap())
            })
            .collect()
    }

    #[test]
    fn no_secret_is_handed_on() {
        for name in [
            "Authorization",
            "Proxy-Authorization",
            "Cookie",
            "Set-Cookie",
            "X-API-Key",
            "X-Hub-Signature",
            "X-Hub-Signature-256",
            "Idempotency-Key",
            "X-Gitlab-Token",
            "X-Client-Secret",
            "X-Db-Password",
            "Stripe-Signature",
            "X-Goog-Iap-Jwt-Assertion",
        ] {
            let handed_on = headers(&map(&[(name, b"hunter2")]), &HashSet::new()).unwrap();
            assert_eq!(handed_on[0].value, REDACTED, "{name}");
            assert_eq!(handed_on[0].name, name.to_ascii_lowercase());
        }
    }

    #[test]
    fn what_a_source_declares_is_not_handed_on_either() {
        let sensitive = HashSet::from([HeaderName::from_static("x-customer")]);
        let handed_on = headers(&map(&[("X-Customer", b"hunter2")]), &sensitive).unwrap();
        assert_eq!(handed_on[0].value, REDACTED);
    }

    #[test]
    fn other_headers_are_handed_on_in_order_and_repeated() {
        let sent = map(&[("x-a", b"1"), ("x-github-event", b"push"), ("x-odd", b"caf\xe9")]);
        let mut sent = sent;
        sent.append("x-a", HeaderValue::from_static("2"));
        let handed_on = headers(&sent, &HashSet::new()).unwrap();
        let pairs: Vec<_> = handed_on.iter().map(|h| (h.name.as_str(), h.value.as_str())).collect();
        assert_eq!(
            pairs,
            [("x-a", "1"), ("x-a", "2"), ("x-github-event", "push"), ("x-odd", "caf\u{fffd}")]
        );
    }

    #[test]
    fn too_many_or_too_large_headers_are_refused() {
        let numbered = |n: usize| -> HeaderMap {
            (0..n)
                .map(|i| (format!("x-{i}").parse().unwrap(), HeaderValue::from_static("")))
                .collect::<HeaderMap>()
        };
        assert!(headers(&numbered(MAX_HEADERS), &HashSet::new()).is_ok());
        assert!(headers(&numbered(MAX_HEADERS + 1), &HashSet::new()).is_err());
        let fits = vec![b'a'; MAX_BYTES - 1];
        assert!(headers(&map(&[("a", &fits)]), &HashSet::new()).is_ok());
        assert!(headers(&map(&[("aa", &fits)]), &HashSet::new()).is_err());
    }
}
