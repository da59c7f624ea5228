//! Takes what a source declares sensitive out of its webhooks' bodies, before
//! they are handed on. All other bytes stay as they came.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    ops::Range,
};

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderName, StatusCode, header};
use mesh::Error;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Value, value::RawValue};
use serde_json_path::JsonPath;
use sha2::Sha256;

use crate::{
    config::SensitiveSettings,
    problem::Problem,
    redact::REDACTED,
    source,
    webhook::{self, essence},
};

/// What stands before the digits of a hash.
const HASHED: &str = "hmac-sha256:";
/// How many levels a body may have: each one is read once more.
const MAX_DEPTH: usize = 32;
/// Headers that become ids and keys, and so can't be taken away.
const NEEDED: [HeaderName; 9] = [
    header::CONTENT_TYPE,
    source::DELIVERY_ID,
    source::EVENT_TYPE,
    source::GITHUB_DELIVERY,
    source::GITHUB_EVENT,
    source::IDEMPOTENCY_KEY,
    webhook::CAUSATION_ID,
    webhook::CORRELATION_ID,
    webhook::SESSION_ID,
];

/// What is sensitive in the webhooks of one source.
pub(crate) struct Sensitive {
    /// JSONPath, RFC 9535.
    redact: Vec<JsonPath>,
    hash: Vec<JsonPath>,
    /// The key is already in it.
    hasher: Option<Hmac<Sha256>>,
    pub(crate) headers: HashSet<HeaderName>,
}

impl Sensitive {
    /// What `settings`, at the key `at`, declare.
    ///
    /// # Errors
    /// Names the setting that can't be used.
    pub(crate) fn try_new(
        at: &str,
        settings: &SensitiveSettings,
        secret: Option<&SecretString>,
    ) -> Result<Self, Error> {
        let paths = |name: &str, texts: &[String]| {
            let path = |text: &String| {
                JsonPath::parse(text)
                    .map_err(|why| Error::setting(format!("{at}.{name}"), text, why))
            };
            texts.iter().map(path).collect::<Result<Vec<_>, _>>()
        };
        let header = |text: &String| {
            let key = format!("{at}.headers");
            let name: HeaderName = text.parse().map_err(|why| Error::setting(&key, text, why))?;
            match NEEDED.contains(&name) {
                true => Err(Error::setting(key, text, "is kept in its own place all the same")),
                false => Ok(name),
            }
        };
        let hasher = secret.filter(|secret| !secret.expose_secret().is_empty());
        if hasher.is_none() && !settings.hash.is_empty() {
            let cause = "is needed to hash: a long random text that nobody else knows";
            return Err(Error::setting("hooks.hash_secret", "", cause));
        }
        let hasher = hasher.map(|secret| Hmac::new_from_slice(secret.expose_secret().as_bytes()));
        let hasher = hasher.transpose();
        Ok(Self {
            redact: paths("redact", &settings.redact)?,
            hash: paths("hash", &settings.hash)?,
            hasher: hasher.map_err(|why| Error::setting("hooks.hash_secret", "********", why))?,
            headers: settings.headers.iter().map(header).collect::<Result<_, _>>()?,
        })
    }

    /// `body` without what is sensitive in it; `None` where nothing is.
    ///
    /// # Errors
    /// 415 or 400, where it isn't JSON of which every part can be found.
    pub(crate) fn conceal(
        &self,
        content_type: &str,
        body: &[u8],
    ) -> Result<Option<Vec<u8>>, Problem> {
        if self.redact.is_empty() && self.hash.is_empty() {
            return Ok(None);
        }
        if !is_json(content_type) {
            let detail = "this source has sensitive fields, which are found in JSON only";
            return Err(Problem::request(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
        }
        // What the parser says has a place in it, and no content.
        let unreadable = |why: serde_json::Error| {
            let detail = format!("the body is no JSON whose sensitive fields can be found: {why}");
            Problem::request(StatusCode::BAD_REQUEST, detail)
        };
        let value = parse(body).map_err(unreadable)?;
        // Values are told apart by where they are in memory: a path to each would cost
        // as much as all names above it.
        let mut wanted: HashMap<*const Value, How> = HashMap::new();
        for (paths, how) in [(&self.redact, How::Redact), (&self.hash, How::Hash)] {
            for found in paths.iter().flat_map(|path| path.query(&value).all()) {
                // Of two the first, which is the stricter.
                wanted.entry(found).or_insert(how);
            }
        }
        let mut parts = Parts { body, wanted, found: Vec::new() };
        let whole = serde_json::from_slice(body).map_err(unreadable)?;
        parts.find(whole, &value).map_err(unreadable)?;
        if parts.found.is_empty() {
            return Ok(None);
        }
        let (mut concealed, mut copied) = (Vec::with_capacity(body.len()), 0);
        for (range, how) in parts.found {
            concealed.extend_from_slice(&body[copied..range.start]);
            let text = match (how, &self.hasher) {
                (How::Hash, Some(hasher)) => hash(hasher, &body[range.clone()]),
                _ => REDACTED.to_owned(),
            };
            concealed.extend_from_slice(format!("\"{text}\"").as_bytes());
            copied = range.end;
        }
        concealed.extend_from_slice(&body[copied..]);
        Ok(Some(concealed))
    }
}

fn is_json(content_type: &str) -> bool {
    let essence = essence(content_type);
    essence == "application/json" || essence.ends_with("+json")
}

/// The hash of a text, or of what else stands there.
fn hash(hasher: &Hmac<Sha256>, raw: &[u8]) -> String {
    let text = serde_json::from_slice::<String>(raw).ok();
    let digest = hasher.clone().chain_update(text.as_deref().map_or(raw, str::as_bytes));
    format!("{HASHED}{}", hex::encode(digest.finalize().into_bytes()))
}

/// What becomes of a part.
#[derive(Clone, Copy, Debug)]
enum How {
    Redact,
    Hash,
}

/// Finds where in a body its parts are, going down once.
struct Parts<'b> {
    body: &'b [u8],
    wanted: HashMap<*const Value, How>,
    /// In the body's order; none is within another.
    found: Vec<(Range<usize>, How)>,
}

impl<'b> Parts<'b> {
    /// Finds what is wanted of `value`, which stands `here`, and of those in it.
    fn find(&mut self, here: &'b RawValue, value: &Value) -> Result<(), serde_json::Error> {
        let text = here.get();
        if let Some(how) = self.wanted.get(&std::ptr::from_ref(value)) {
            let start = text.as_ptr() as usize - self.body.as_ptr() as usize;
            self.found.push((start..start + text.len(), *how));
            return Ok(());
        }
        match value {
            Value::Object(values) => {
                for (name, member) in serde_json::from_str::<Members<'b>>(text)?.0 {
                    if let Some(value) = values.get(&name) {
                        self.find(member, value)?;
                    }
                }
            }
            Value::Array(values) => {
                let elements: Vec<&'b RawValue> = serde_json::from_str(text)?;
                for (element, value) in elements.into_iter().zip(values) {
                    self.find(element, value)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The members of an object, as they stand there.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Each;

        impl<'de> Visitor<'de> for Each {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        from.deserialize_map(Each)
    }
}

fn parse(body: &[u8]) -> Result<Value, serde_json::Error> {
    let mut from = serde_json::Deserializer::from_slice(body);
    let value = Level(MAX_DEPTH).deserialize(&mut from)?;
    from.end()?;
    Ok(value)
}

/// Reads a value in which no object has a name twice: which of the two is meant
/// differs from reader to reader, and so one of them could keep what is sensitive.
/// So many levels more may be in it.
#[derive(Clone, Copy)]
struct Level(usize);

impl Level {
    fn below<E: de::Error>(self) -> Result<Self, E> {
        let below = self.0.checked_sub(1).map(Self);
        below.ok_or_else(|| E::custom(format!("more than {MAX_DEPTH} levels")))
    }
}

impl<'de> DeserializeSeed<'de> for Level {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let below = self.below()?;
        let mut elements = Vec::new();
        while let Some(element) = from.next_element_seed(below)? {
            elements.push(element);
        }
        Ok(elements.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let below = self.below()?;
        let mut members = serde_json::Map::new();
        while let Some(name) = from.next_key::<String>()? {
            if members.insert(name, from.next_value_seed(below)?).is_some() {
                return Err(de::Error::custom("an object has a name twice"));
            }
        }
        Ok(members.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sensitive(redact: &[&str], hash: &[&str]) -> Sensitive {
        let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let settings = SensitiveSettings { redact: own(redact), hash: own(hash), headers: vec![] };
        Sensitive::try_new("s", &settings, Some(&"key".into())).unwrap()
    }

    fn concealed(sensitive: &Sensitive, body: &str) -> String {
        let concealed = sensitive.conceal("application/json", body.as_bytes()).unwrap();
        concealed.map_or_else(|| body.to_owned(), |bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn what_is_declared_goes_and_all_other_bytes_stay() {
        let sensitive = sensitive(&["$.card.number", "$..password", "$.list[1]"], &[]);
        let body = "{ \"n\": 1.00, \"card\" : {\"number\":\"4111\", \"x\":[1,2]},\n \
                    \"u\":[{\"password\" : {\"deep\":1}}], \"list\":[0, 1e3 ,2], \"é\\u00e9\":null}";
        let expected = "{ \"n\": 1.00, \"card\" : {\"number\":\"[redacted]\", \"x\":[1,2]},\n \
                        \"u\":[{\"password\" : \"[redacted]\"}], \"list\":[0, \"[redacted]\" ,2], \
                        \"é\\u00e9\":null}";
        assert_eq!(concealed(&sensitive, body), expected);
        assert_eq!(concealed(&sensitive, "[ 1 ]"), "[ 1 ]");
        assert_eq!(concealed(&sensitive, " 7 "), " 7 ");
    }

    #[test]
    fn names_are_found_however_they_are_written() {
        let sensitive = sensitive(&["$['a/b~c']", "$['sécret']"], &[]);
        let body = r#"{"a\/b~c":1,"s\u00e9cret":2,"other":3}"#;
        let expected = r#"{"a\/b~c":"[redacted]","s\u00e9cret":"[redacted]","other":3}"#;
        assert_eq!(concealed(&sensitive, body), expected);
    }

    #[test]
    fn a_hash_tells_who_is_the_same_and_nothing_else() {
        let sensitive = sensitive(&[], &["$..email"]);
        let told = concealed(&sensitive, r#"{"a":{"email":"x@y"},"b":{"email":"x\u0040y"}}"#);
        let value: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(value["a"]["email"], value["b"]["email"]);
        let digits = value["a"]["email"].as_str().unwrap().strip_prefix(HASHED).unwrap();
        // printf x@y | openssl dgst -sha256 -hmac key
        assert_eq!(digits, "a8badb39a6e7a59e796372fbdd48c0eca92b37815f752fd9e8f6a35fe35658ac");
        assert_ne!(
            concealed(&sensitive, r#"{"email":"x@z"}"#),
            concealed(&sensitive, r#"{"email":"x@y"}"#)
        );
    }

    #[test]
    fn the_stricter_one_wins_and_a_part_goes_with_its_whole() {
        let sensitive = sensitive(&["$.a", "$.b.c"], &["$.a", "$.b"]);
        let told: Value =
            serde_json::from_str(&concealed(&sensitive, r#"{"a":"1","b":{"c":"2"}}"#)).unwrap();
        assert_eq!(told["a"], REDACTED);
        assert!(told["b"].as_str().unwrap().starts_with(HASHED), "{told}");
    }

    #[test]
    fn what_cant_be_searched_is_refused_without_telling_what_is_in_it() {
        let sensitive = sensitive(&["$.a"], &[]);
        let refused = |kind: &str, body: &str| {
            format!("{:?}", sensitive.conceal(kind, body.as_bytes()).unwrap_err())
        };
        for body in
            ["hunter2", r#"{"a":"hunter2","a":1}"#, r#"{"a":{"hunter2":1,"hunter2":2}}"#, ""]
        {
            let said = refused("application/json", body);
            assert!(!said.contains("hunter2"), "{said}");
        }
        assert!(refused("text/plain", "{}").contains("JSON only"));
        for depth in [MAX_DEPTH + 1, 100_000] {
            refused("application/json", &format!("{}1{}", "[".repeat(depth), "]".repeat(depth)));
        }
    }

    fn check(body: &[u8]) {
        let concealed = sensitive(&["$..a"], &["$..b"]).conceal("application/json", body);
        let left: Value = match concealed {
            Ok(Some(concealed)) => serde_json::from_slice(&concealed).unwrap(),
            // It stays as it is.
            Ok(None) => serde_json::from_slice(body).unwrap(),
            Err(_) => return,
        };
        for (path, begins) in [("$..a", REDACTED), ("$..b", HASHED)] {
            for found in JsonPath::parse(path).unwrap().query(&left).all() {
                assert!(found.as_str().unwrap().starts_with(begins), "{left}");
            }
        }
    }

    #[test]
    fn what_is_left_of_any_body_is_json_without_what_was_declared() {
        const TOKENS: [&str; 16] = [
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            r#""a""#,
            r#""b""#,
            r#""\u0061""#,
            r#""c\"d""#,
            "1e3",
            "null",
            " ",
            "\n",
            "-0",
            "é",
        ];
        bolero::check!().with_iterations(2000).with_type::<Vec<u8>>().for_each(|choices| {
            let token = |choice: &u8| TOKENS[usize::from(*choice) % TOKENS.len()];
            check(choices.iter().map(token).collect::<String>().as_bytes());
            // Valid by construction: an object of an array of objects of what is chosen.
            let members = choices.chunks(2).enumerate().map(|(n, pair)| {
                let name = ["a", "b", r"\u0061", "c"][usize::from(pair[0]) % 4];
                let name = if n == 0 { name.to_owned() } else { format!("{n}") };
                let value = [r#"{"a":[1,{"b":2}]}"#, r#""x\"y""#, "[ null , {\"b\" : 1} ]", "7"];
                format!(r#""{name}" : {}"#, value[usize::from(*pair.last().unwrap()) % 4])
            });
            check(format!("{{{}}}", members.collect::<Vec<_>>().join(" ,\n")).as_bytes());
        });
    }

    /// Minutes, or gigabytes, if it grew with names times values.
    #[test]
    fn long_names_and_many_values_cost_no_more_than_their_bytes() {
        let sensitive = sensitive(&["$..password"], &[]);
        let name = "n".repeat(500_000);
        let many = vec![r#"{"password":1}"#; 30_000].join(",");
        let told = concealed(&sensitive, &format!("{{\"{name}\":[{many}]}}"));
        assert_eq!(told.matches(REDACTED).count(), 30_000);
        let zeros = vec!["0"; 250_000].join(",");
        let told = concealed(&sensitive, &format!("{{\"{name}\":[{zeros},{many}]}}"));
        assert_eq!(told.matches(REDACTED).count(), 30_000);
    }

    #[test]
    fn a_setting_that_cant_be_used_is_named() {
        let settings = |redact: &str, hash: &str, header: &str| SensitiveSettings {
            redact: vec![redact.to_owned()],
            hash: vec![hash.to_owned()],
            headers: vec![header.to_owned()],
        };
        let error = |settings: &SensitiveSettings, secret: Option<&SecretString>| {
            Sensitive::try_new("at", settings, secret).err().unwrap().to_string()
        };
        let secret: SecretString = "key".into();
        assert!(error(&settings("a", "$.a", "x"), Some(&secret)).contains("at.redact"));
        assert!(error(&settings("$.a", "$[", "x"), Some(&secret)).contains("at.hash"));
        assert!(error(&settings("$.a", "$.b", "x y"), Some(&secret)).contains("at.headers"));
        let needed = settings("$.a", "$.b", "X-Correlation-Id");
        assert!(error(&needed, Some(&secret)).contains("at.headers"));
        assert!(error(&settings("$.a", "$.b", "x"), None).contains("hooks.hash_secret"));
    }
}
