//! Which requests a permission is about: their path, method and headers. All
//! that can be compiled is compiled when a permission is made; matching
//! allocates nothing but for a header that comes more than once.
//!
//! Source of the conditions: Consul, "Service intentions configuration entry",
//! `Sources[].Permissions[].HTTP`, and what its `agent/xds/rbac.go` makes of
//! them. Where a header is missing or comes more than once, Envoy's reading can
//! be used to slip by; see [`HeaderMatch`].

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use serde::Deserialize;

use super::Action;

/// How long a regular expression may be, in bytes, and how large what it is
/// compiled to: an expression must not cost more than what it guards.
const MAX_PATTERN: usize = 1024;
const MAX_COMPILED: usize = 256 * 1024;

/// What is decided for the requests that match; without any condition, all do.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Permission {
    /// What is decided.
    pub action: Action,
    /// For which paths.
    pub path: PathMatch,
    /// For which HTTP methods, where there are any; gRPC's is always `POST`.
    pub methods: Vec<Method>,
    /// For requests of which all of these hold.
    pub headers: Vec<HeaderMatch>,
}

/// Which gRPC method paths are meant, such as
/// `/omnibridge.hooks.v1.HookReceiver/Receive`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// Every one.
    Any,
    /// This one.
    Exact(String),
    /// Those that begin so.
    Prefix(String),
    /// Those that it matches as a whole.
    Regex(Pattern),
}

/// What must hold of one header. Where it doesn't come exactly once, doubt is
/// for the denial: of several values an allowance needs all to match, a denial
/// one, or all joined by commas. A missing header matches no value; turned
/// round, that is enough to deny and not to allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// The header's name.
    pub name: HeaderName,
    /// What must hold of its value.
    pub value: ValueMatch,
    /// Whether the case of ASCII letters in the value doesn't matter; nothing
    /// to a regular expression.
    pub ignore_case: bool,
    /// Whether it must not hold.
    pub invert: bool,
}

/// What must hold of a header's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    /// That there is one.
    Present,
    /// It is this.
    Exact(String),
    /// It begins so.
    Prefix(String),
    /// It ends so.
    Suffix(String),
    /// This is in it.
    Contains(String),
    /// The expression matches it as a whole.
    Regex(Pattern),
}

/// Why a permission can't be compiled.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPermission {
    /// Paths exclude each other.
    #[error("only one of path_exact, path_prefix and path_regex can be given")]
    Paths,
    /// Conditions on a value exclude each other.
    #[error(
        "the header `{0}` needs exactly one of present, exact, prefix, suffix, contains and regex"
    )]
    Value(String),
    /// There is no case to ignore.
    #[error("the header `{0}` has ignore_case, which present and regex don't take")]
    IgnoreCase(String),
    /// The name is none that a header can have.
    #[error("`{0}` is no header's name")]
    Header(String),
    /// The method is none that a request can have.
    #[error("`{0}` is no HTTP method")]
    Method(String),
    /// The expression is wrong or too large.
    #[error("`{0}` is no regular expression that can be used here: {1}")]
    Pattern(String, String),
}

impl Permission {
    /// Whether `request` is one of those meant.
    pub fn matches<B>(&self, request: &Request<B>) -> bool {
        self.path.matches(request.uri().path())
            && (self.methods.is_empty() || self.methods.contains(request.method()))
            && self.headers.iter().all(|header| header.matches(request.headers(), self.action))
    }
}

impl PathMatch {
    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => path.starts_with(prefix.as_str()),
            Self::Regex(pattern) => pattern.matches(path.as_bytes()),
        }
    }
}

impl HeaderMatch {
    fn matches(&self, headers: &HeaderMap, action: Action) -> bool {
        let mut values = headers.get_all(&self.name).iter().map(HeaderValue::as_bytes);
        let first = values.next();
        if self.value == ValueMatch::Present {
            return first.is_some() != self.invert;
        }
        let holds = |value: &[u8]| self.value.matches(value, self.ignore_case) != self.invert;
        match (first, action) {
            (None, _) => self.invert && action == Action::Deny,
            (Some(first), Action::Allow) => holds(first) && values.all(holds),
            (Some(first), Action::Deny) => {
                holds(first)
                    || values.any(holds)
                    || joined(headers, &self.name).is_some_and(|all| holds(&all))
            }
        }
    }
}

/// The values of a header that comes more than once, as a proxy may join them.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<u8>> {
    let values: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    (values.len() > 1).then(|| values.join(&b','))
}

impl ValueMatch {
    fn matches(&self, value: &[u8], ignore_case: bool) -> bool {
        let same = |part: &[u8], wanted: &[u8]| match ignore_case {
            true => part.eq_ignore_ascii_case(wanted),
            false => part == wanted,
        };
        match self {
            Self::Present => true,
            Self::Exact(exact) => same(value, exact.as_bytes()),
            Self::Prefix(prefix) => {
                value.get(..prefix.len()).is_some_and(|part| same(part, prefix.as_bytes()))
            }
            Self::Suffix(suffix) => value
                .len()
                .checked_sub(suffix.len())
                .is_some_and(|from| same(&value[from..], suffix.as_bytes())),
            Self::Contains(part) => {
                value.windows(part.len()).any(|window| same(window, part.as_bytes()))
            }
            Self::Regex(pattern) => pattern.matches(value),
        }
    }
}

/// A regular expression that has to match as a whole, as Envoy's do. Classes
/// such as `\d` are ASCII's, as in RE2.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    regex: regex::bytes::Regex,
}

impl Pattern {
    /// Compiles `text`.
    ///
    /// # Errors
    /// When it is no regular expression, or too large a one.
    pub fn try_new(text: &str) -> Result<Self, InvalidPermission> {
        let invalid = |why: String| {
            // The last line says it; those before it draw a picture.
            let why = why.lines().last().unwrap_or_default().to_owned();
            InvalidPermission::Pattern(text.chars().take(64).collect(), why)
        };
        if text.len() > MAX_PATTERN {
            return Err(invalid(format!("it has more than {MAX_PATTERN} bytes")));
        }
        let compile = |text: &str| {
            regex::bytes::RegexBuilder::new(text)
                .unicode(false)
                .size_limit(MAX_COMPILED)
                .dfa_size_limit(MAX_COMPILED)
                .build()
                .map_err(|why| invalid(why.to_string()))
        };
        // By itself first: `a)|(b` is none, but would be one between brackets.
        compile(text)?;
        let regex = compile(&format!(r"\A(?:{text})\z"))?;
        Ok(Self { text: text.to_owned(), regex })
    }

    fn matches(&self, text: &[u8]) -> bool {
        self.regex.is_match(text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

/// A permission as it is written down; what is empty isn't given.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    pub(super) action: Action,
    #[serde(default)]
    pub(super) path_exact: String,
    #[serde(default)]
    pub(super) path_prefix: String,
    #[serde(default)]
    pub(super) path_regex: String,
    #[serde(default)]
    pub(super) methods: Vec<String>,
    #[serde(default)]
    pub(super) headers: Vec<WrittenHeader>,
}

/// A condition on a header as it is written down.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct WrittenHeader {
    pub(super) name: String,
    pub(super) present: bool,
    pub(super) exact: String,
    pub(super) prefix: String,
    pub(super) suffix: String,
    pub(super) contains: String,
    pub(super) regex: String,
    pub(super) ignore_case: bool,
    pub(super) invert: bool,
}

impl TryFrom<Written> for Permission {
    type Error = InvalidPermission;

    fn try_from(written: Written) -> Result<Self, InvalidPermission> {
        let Written { action, path_exact, path_prefix, path_regex, methods, headers } = written;
        let path = match (path_exact.is_empty(), path_prefix.is_empty(), path_regex.is_empty()) {
            (true, true, true) => PathMatch::Any,
            (false, true, true) => PathMatch::Exact(path_exact),
            (true, false, true) => PathMatch::Prefix(path_prefix),
            (true, true, false) => PathMatch::Regex(Pattern::try_new(&path_regex)?),
            _ => return Err(InvalidPermission::Paths),
        };
        let method = |name: String| {
            Method::from_bytes(name.as_bytes()).map_err(|_| InvalidPermission::Method(name))
        };
        Ok(Self {
            action,
            path,
            methods: methods.into_iter().map(method).collect::<Result<_, _>>()?,
            headers: headers.into_iter().map(HeaderMatch::try_from).collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<WrittenHeader> for HeaderMatch {
    type Error = InvalidPermission;

    fn try_from(written: WrittenHeader) -> Result<Self, InvalidPermission> {
        let WrittenHeader { name, ignore_case, invert, .. } = written;
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        let pattern = given(written.regex).map(|text| Pattern::try_new(&text)).transpose()?;
        let mut values = [
            written.present.then_some(ValueMatch::Present),
            given(written.exact).map(ValueMatch::Exact),
            given(written.prefix).map(ValueMatch::Prefix),
            given(written.suffix).map(ValueMatch::Suffix),
            given(written.contains).map(ValueMatch::Contains),
            pattern.map(ValueMatch::Regex),
        ]
        .into_iter()
        .flatten();
        let (Some(value), None) = (values.next(), values.next()) else {
            return Err(InvalidPermission::Value(name));
        };
        if ignore_case && matches!(value, ValueMatch::Present | ValueMatch::Regex(_)) {
            return Err(InvalidPermission::IgnoreCase(name));
        }
        let name =
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| InvalidPermission::Header(name))?;
        Ok(Self { name, value, ignore_case, invert })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permission(toml: &str) -> Result<Permission, String> {
        toml::from_str(toml).map_err(|why| why.to_string())
    }

    fn matches(toml: &str, headers: &[(&str, &str)]) -> bool {
        let mut request = Request::post("/p.S/M");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        permission(toml).unwrap().matches(&request.body(()).unwrap())
    }

    /// Whether a condition on `x` holds, of an allowance and of a denial.
    fn holds(condition: &str, values: &[&str]) -> (bool, bool) {
        let headers: Vec<_> = values.iter().map(|value| ("x", *value)).collect();
        let of = |action: &str| {
            let toml = format!("action = '{action}'\nheaders = [{{ name = 'X', {condition} }}]");
            matches(&toml, &headers)
        };
        (of("allow"), of("deny"))
    }

    const BOTH: (bool, bool) = (true, true);
    const NEITHER: (bool, bool) = (false, false);
    const DENIAL: (bool, bool) = (false, true);

    #[test]
    fn a_path_is_matched_exactly_by_prefix_or_as_a_whole_by_a_regex() {
        for (condition, expected) in [
            ("", true),
            ("path_exact = '/p.S/M'", true),
            ("path_exact = '/p.S/'", false),
            ("path_prefix = '/p.S/'", true),
            ("path_prefix = '/p.S/M2'", false),
            ("path_regex = '/p[.]S/.*'", true),
            ("path_regex = '/p[.]S/'", false),
            ("path_regex = 'p[.]S/M'", false),
            // The whole has to match, whichever alternative is tried first.
            ("path_regex = '/p|/p[.]S/M'", true),
        ] {
            assert_eq!(
                matches(&format!("action = 'allow'\n{condition}"), &[]),
                expected,
                "{condition}"
            );
        }
    }

    #[test]
    fn a_method_is_matched_by_name() {
        assert!(matches("action = 'allow'\nmethods = ['GET', 'POST']", &[]));
        assert!(!matches("action = 'allow'\nmethods = ['GET']", &[]));
    }

    #[test]
    fn each_condition_on_a_header_holds_when_it_should_and_its_inversion_when_not() {
        for (condition, value, expected) in [
            ("present = true", "", true),
            ("exact = 'ab'", "ab", true),
            ("exact = 'ab'", "abc", false),
            ("exact = 'ab'", "AB", false),
            ("exact = 'ab', ignore_case = true", "AB", true),
            ("prefix = 'ab'", "abc", true),
            ("prefix = 'ab'", "a", false),
            ("prefix = 'AB', ignore_case = true", "abc", true),
            ("suffix = 'bc'", "abc", true),
            ("suffix = 'bc'", "c", false),
            ("contains = 'b'", "abc", true),
            ("contains = 'bb'", "b", false),
            ("contains = 'B', ignore_case = true", "abc", true),
            ("regex = '[a-c]+'", "abc", true),
            ("regex = '[a-c]+'", "abcd", false),
            (r"regex = '\d'", "7", true),
        ] {
            let expect = |holds: bool| if holds { BOTH } else { NEITHER };
            assert_eq!(holds(condition, &[value]), expect(expected), "{condition} of {value}");
            let inverted = format!("{condition}, invert = true");
            assert_eq!(holds(&inverted, &[value]), expect(!expected), "{inverted} of {value}");
        }
    }

    #[test]
    fn a_missing_header_allows_nothing_and_its_inversion_denies() {
        assert_eq!(holds("present = true", &[]), NEITHER);
        assert_eq!(holds("present = true, invert = true", &[]), BOTH);
        assert_eq!(holds("exact = 'a'", &[]), NEITHER);
        assert_eq!(holds("exact = 'a', invert = true", &[]), DENIAL);
        assert_eq!(holds("regex = '.*'", &[]), NEITHER);
    }

    #[test]
    fn a_header_that_comes_twice_can_not_slip_by_a_denial_or_into_an_allowance() {
        assert_eq!(holds("exact = 'a'", &["a", "b"]), DENIAL);
        assert_eq!(holds("exact = 'a'", &["b", "a"]), DENIAL);
        assert_eq!(holds("exact = 'a'", &["a", "a"]), BOTH);
        assert_eq!(holds("exact = 'a,b'", &["a", "b"]), DENIAL);
        assert_eq!(holds("exact = 'a', invert = true", &["a", "b"]), DENIAL);
        assert_eq!(holds("exact = 'a', invert = true", &["c", "b"]), BOTH);
    }

    #[test]
    fn bytes_that_are_no_text_are_matched_as_bytes() {
        let value = HeaderValue::from_bytes(b"a\xff").unwrap();
        let request = Request::post("/").header("x", value).body(()).unwrap();
        let any = permission("action = 'deny'\nheaders = [{ name = 'x', regex = 'a.' }]").unwrap();
        assert!(any.matches(&request));
    }

    #[test]
    fn what_can_not_be_compiled_is_refused_and_named() {
        let huge = format!("path_regex = '{}'", "a".repeat(MAX_PATTERN + 1));
        for (wrong, named) in [
            ("path_exact = '/a'\npath_prefix = '/b'", "only one of path_exact"),
            ("path_regex = '('", "unclosed group"),
            ("path_regex = 'a)|(b'", "unopened group"),
            ("path_regex = '((a{100}){100}){100}'", "size limit"),
            (&huge, "more than 1024 bytes"),
            ("path_glob = '/a*'", "path_glob"),
            ("methods = ['a b']", "`a b` is no HTTP method"),
            ("headers = [{ name = ':path', present = true }]", "`:path` is no header's name"),
            ("headers = [{ name = 'x' }]", "`x` needs exactly one of"),
            ("headers = [{ name = 'x', exact = 'a', prefix = 'a' }]", "`x` needs exactly one of"),
            ("headers = [{ name = 'x', regex = 'a', ignore_case = true }]", "ignore_case"),
            ("headers = [{ name = 'x', exact = 'a', tomorrow = 1 }]", "tomorrow"),
            ("jwt = { providers = [] }", "jwt"),
        ] {
            let why = permission(&format!("action = 'allow'\n{wrong}")).unwrap_err();
            assert!(why.contains(named), "{wrong}: {why}");
        }
    }
}
