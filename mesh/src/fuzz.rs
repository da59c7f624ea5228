//! Whatever bytes come from outside, what reads them answers or refuses, and
//! never panics. Each target runs its corpus (`__fuzz__/NAME/corpus` beside its
//! file) and some thousand random inputs as a normal test; `cargo bolero test
//! -p mesh PATH::OF::TEST` goes on from there for as long as one likes.
//!
//! The readers that nobody else can call have their targets beside them:
//! certificates in `identity/tests`, Consul's answers in `identity/consul`,
//! `policy/consul` and `registry/consul`, Kafka's records in `events/broker`.

use std::collections::HashMap;

use bolero::TypeGenerator;
use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    client::deadline, config::Config, identity::SpiffeId, page, policy::Intentions,
    telemetry::trace,
};

/// A change to a JSON document: the way down, and what is put there.
#[derive(Clone, Debug, TypeGenerator)]
pub(crate) struct Change {
    way: Vec<u8>,
    with: u8,
}

impl Change {
    /// Replaces a part of `document`, or adds one to it.
    pub(crate) fn apply(&self, document: &mut Value) {
        let put = [
            Value::Null,
            json!(true),
            json!(-1),
            json!(1e300),
            json!(u64::MAX),
            json!(""),
            json!("a"),
            json!("*"),
            json!("\u{0}\n("),
            json!("é".repeat(300)),
            json!([]),
            json!([null, "a", {}]),
            json!({}),
            json!({ "Name": "x", "Unknown": [1] }),
        ];
        *part(document, &self.way) = put[usize::from(self.with) % put.len()].clone();
    }
}

/// The part at the end of `way`, of which each step goes to one of the parts
/// there are.
fn part<'a>(whole: &'a mut Value, way: &[u8]) -> &'a mut Value {
    let mut pointer = String::new();
    let mut here = &*whole;
    for step in way.iter().map(|step| usize::from(*step)) {
        let (name, next) = match here {
            Value::Array(items) if !items.is_empty() => {
                ((step % items.len()).to_string(), &items[step % items.len()])
            }
            Value::Object(fields) if !fields.is_empty() => {
                let (name, next) = fields.iter().nth(step % fields.len()).unwrap();
                (name.replace('~', "~0").replace('/', "~1"), next)
            }
            _ => break,
        };
        pointer += &format!("/{name}");
        here = next;
    }
    whole.pointer_mut(&pointer).unwrap()
}

#[test]
fn any_grpc_timeout_is_a_time_or_none() {
    bolero::check!(name = "grpc_timeout").with_iterations(5000).with_max_len(16).for_each(
        |bytes: &[u8]| {
            let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
            let headers = HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), value)]);
            if let Some(left) = deadline::parse(&headers) {
                assert!(Instant::now().checked_add(left).is_some(), "{left:?}");
                let digits = bytes.len() - 1;
                assert!((1..=8).contains(&digits), "{bytes:?}");
            }
        },
    );
}

#[test]
fn any_traceparent_is_a_context_or_none() {
    bolero::check!(name = "traceparent").with_iterations(5000).with_max_len(64).for_each(
        |bytes: &[u8]| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            if let Some(context) = trace::parse(text) {
                assert!(context.is_valid() && context.is_remote());
                // All but the flags we don't know comes back.
                assert_eq!(trace::format(&context)[..53], text[..53]);
            }
        },
    );
}

#[test]
fn any_spiffe_id_is_taken_as_it_is_or_refused() {
    bolero::check!(name = "spiffe_id").with_iterations(5000).with_max_len(512).for_each(
        |bytes: &[u8]| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            match text.parse::<SpiffeId>() {
                Ok(id) => {
                    assert_eq!(id.as_str(), text);
                    let (domain, name) = (id.trust_domain(), id.name());
                    assert!(text.starts_with(&format!("spiffe://{domain}/ns/default/dc/")));
                    assert!(text.ends_with(&format!("/svc/{name}")) && !name.contains('/'));
                }
                // It is logged: not at any length.
                Err(why) => assert!(why.to_string().len() < 1200),
            }
        },
    );
}

#[test]
fn any_page_token_leads_back_to_itself_or_is_refused() {
    bolero::check!(name = "page_token").with_iterations(5000).with_max_len(64).for_each(
        |bytes: &[u8]| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            if let Ok(Some(place)) = page::place::<2>("page_token", text) {
                assert_eq!(page::token(place.each_ref().map(String::as_str)), text);
            }
            if let Ok(Some(number)) = page::number("page_token", text) {
                let again = page::number("page_token", &page::token([&number.to_string()]));
                assert_eq!(again.unwrap(), Some(number));
            }
        },
    );
}

#[test]
fn any_omni_toml_is_a_configuration_or_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("omni.toml");
    bolero::check!(name = "omni_toml").with_iterations(150).with_max_len(512).for_each(
        |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            configuration(&file);
        },
    );
}

/// As above, but of valid TOML, so that more than its parser is reached.
#[test]
fn any_settings_are_a_configuration_or_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("omni.toml");
    let sound = json!({
        "data": "d", "bind": "127.0.0.1", "drain_timeout": "1s",
        "services": { "audit": { "port": 1 } },
        "instances": { "audit": ["127.0.0.1:1"] },
        "intentions": [
            { "source": "a", "destination": "b", "action": "allow" },
            { "source": "a", "destination": "*", "permissions": [{
                "action": "deny", "path_regex": "/p.*", "methods": ["POST"],
                "headers": [{ "name": "x", "exact": "y", "invert": true }],
            }] },
        ],
        "routes": { "/p.S/M": { "timeout": "1s" } },
    });
    bolero::check!().with_iterations(150).with_type::<Vec<Change>>().for_each(|changes| {
        let mut settings = sound.clone();
        changes.iter().for_each(|change| change.apply(&mut settings));
        // TOML has no null, and its documents are tables.
        if let Ok(text) = toml::to_string(&settings) {
            std::fs::write(&file, text).unwrap();
            configuration(&file);
        }
    });
}

fn configuration(file: &std::path::Path) {
    match Config::from_sources(Some(file), HashMap::new(), &[]) {
        Ok(config) => {
            let _ = config.check_keys(&["hooks"]);
            assert!(!config.effective().is_empty());
            let _ = Intentions::compile(config.intentions.clone(), &[]);
        }
        Err(why) => assert!(!why.to_string().is_empty()),
    }
}
