//! The policy against a fake agent.

use std::collections::HashMap;

use fake_consul::FakeConsul;
use serde_json::json;

use super::*;
use crate::{fuzz::Change, identity::SpiffeId, policy::Decision};

const DEADLINE: Duration = Duration::from_secs(10);
const PATH: &str = "/p.S/M";

fn config(agent: &FakeConsul, toml: &str) -> Config {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("omni.toml");
    std::fs::write(&file, toml).unwrap();
    let flags = [("registry", agent.url())];
    Config::from_sources(Some(&file), HashMap::new(), &flags).unwrap()
}

fn decide(policy: &Policy, source: &str, destination: &str, path: &str) -> Decision {
    let source = SpiffeId::of_service("d", source).unwrap();
    policy.decide(&source, destination, &http::Request::post(path).body(()).unwrap())
}

async fn until(watched: &mut watch::Receiver<Arc<Policy>>, holds: impl Fn(&Policy) -> bool) {
    tokio::time::timeout(DEADLINE, watched.wait_for(|policy| holds(policy)))
        .await
        .expect("the policy never gets there")
        .unwrap();
}

#[tokio::test]
async fn an_intention_counts_from_the_moment_consul_has_it() {
    let agent = FakeConsul::start().await;
    let declared =
        Declared { calls: vec![("a".to_owned(), "b".to_owned())], ..Declared::default() };
    let mut watched = crate::policy::policy(&config(&agent, ""), &declared).await.unwrap();
    assert_eq!(decide(&watched.borrow(), "a", "b", PATH), Decision::Allowed);

    agent.set_intention("a", "b", "deny");
    until(&mut watched, |p| decide(p, "a", "b", PATH) == Decision::DeniedByIntention).await;
    agent.delete_intention("a", "b");
    until(&mut watched, |p| decide(p, "a", "b", PATH) == Decision::Allowed).await;
}

#[tokio::test]
async fn consuls_intention_overrides_the_files_for_the_same_pair() {
    let agent = FakeConsul::start().await;
    agent.set_intention("a", "b", "deny");
    let file = r#"
        intentions = [
            { source = "a", destination = "b", action = "allow" },
            { source = "a", destination = "c", action = "allow" },
        ]
    "#;
    let watched = watch_consul(&config(&agent, file), &Declared::default()).await.unwrap();
    let policy = watched.borrow();
    assert_eq!(decide(&policy, "a", "b", PATH), Decision::DeniedByIntention);
    assert_eq!(decide(&policy, "a", "c", PATH), Decision::Allowed);
}

#[tokio::test]
async fn permissions_are_decided_by_path() {
    let agent = FakeConsul::start().await;
    let permissions = json!([
        { "Action": "deny", "HTTP": { "PathExact": "/p.S/Secret" } },
        { "Action": "allow", "HTTP": { "PathPrefix": "/p.S/", "Methods": ["GET", "POST"] } },
        { "Action": "allow", "HTTP": { "PathPrefix": "/", "Methods": ["GET"] } },
    ]);
    agent.set_permissions("a", "b", permissions);
    let watched = watch_consul(&config(&agent, ""), &Declared::default()).await.unwrap();
    let policy = watched.borrow();
    assert_eq!(decide(&policy, "a", "b", "/p.S/Secret"), Decision::DeniedByIntention);
    assert_eq!(decide(&policy, "a", "b", "/p.S/M"), Decision::Allowed);
    // No gRPC call is a GET.
    assert_eq!(decide(&policy, "a", "b", "/q.S/M"), Decision::DeniedByIntention);
}

#[tokio::test]
async fn permissions_are_decided_by_regex_header_and_method() {
    let agent = FakeConsul::start().await;
    let http = json!({
        "PathRegex": "/p[.]S/(M|N)",
        "Methods": ["POST"],
        "Header": [
            { "Name": "X-Tenant", "Exact": "Blue", "IgnoreCase": true },
            { "Name": "x-debug", "Present": true, "Invert": true },
            { "Name": "x-user", "Regex": "[a-z]+" },
        ],
    });
    agent.set_permissions("a", "b", json!([{ "Action": "allow", "HTTP": http }]));
    let watched = watch_consul(&config(&agent, ""), &Declared::default()).await.unwrap();
    let policy = watched.borrow();
    let a = SpiffeId::of_service("d", "a").unwrap();
    let decide = |path: &str, headers: &[(&str, &str)]| {
        let mut request = http::Request::post(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        policy.decide(&a, "b", &request.body(()).unwrap()).is_allowed()
    };
    let good = [("x-tenant", "blue"), ("x-user", "ann")];
    assert!(decide("/p.S/M", &good));
    assert!(!decide("/p.S/MN", &good));
    assert!(!decide("/p.S/M", &good[..1]));
    assert!(!decide("/p.S/M", &[("x-tenant", "blue"), ("x-user", "ann2")]));
    assert!(!decide("/p.S/M", &[good[0], good[1], ("x-debug", "")]));
}

#[tokio::test]
async fn a_condition_that_is_not_known_fails_closed() {
    let agent = FakeConsul::start().await;
    let header = |condition: serde_json::Value| json!({ "PathPrefix": "/", "Header": [condition] });
    let unknown = [
        json!({ "PathRegex": "(" }),
        json!({ "PathRegex": "a".repeat(2000) }),
        json!({ "PathPrefix": "/", "PathExact": "/z.S/M" }),
        json!({ "PathPrefix": "/", "Methods": ["P OST"] }),
        json!({ "PathPrefix": "/", "FromAConsulOfTomorrow": true }),
        header(json!({ "Name": "x" })),
        header(json!({ "Name": ":authority", "Present": true })),
        header(json!({ "Name": "x", "Present": true, "FromAConsulOfTomorrow": 1 })),
    ];
    for (n, http) in unknown.iter().enumerate() {
        let allow_all = json!({ "Action": "allow", "HTTP": { "PathPrefix": "/" } });
        let allow = json!([{ "Action": "allow", "HTTP": http }]);
        agent.set_permissions("a", &format!("allow-{n}"), allow);
        let deny = json!([{ "Action": "deny", "HTTP": http }, allow_all]);
        agent.set_permissions("a", &format!("deny-{n}"), deny);
    }
    let jwt = json!({ "Providers": [{ "Name": "okta" }] });
    let allow = json!([{ "Action": "allow", "HTTP": { "PathPrefix": "/" }, "JWT": jwt }]);
    agent.set_permissions("a", "jwt", allow);
    let watched = watch_consul(&config(&agent, ""), &Declared::default()).await.unwrap();
    let policy = watched.borrow();
    for n in 0..unknown.len() {
        for destination in [format!("allow-{n}"), format!("deny-{n}")] {
            let decision = decide(&policy, "a", &destination, "/z.S/M");
            assert_eq!(decision, Decision::DeniedByIntention, "{destination}");
        }
    }
    assert_eq!(decide(&policy, "a", "jwt", PATH), Decision::DeniedByIntention);
}

#[test]
fn an_intention_with_a_condition_that_is_not_known_denies_its_pair() {
    let permissions = json!([{ "Action": "allow", "HTTP": { "PathPrefix": "/" } }]);
    for (condition, expected) in [
        (json!({ "Description": "a note", "Precedence": 9, "SourceType": "consul" }), true),
        (json!({ "SourceNS": "default", "DestinationNS": "default" }), true),
        (json!({ "JWT": { "Providers": [{ "Name": "okta" }] } }), false),
        (json!({ "SourceSamenessGroup": "near" }), false),
        (json!({ "SourceType": "external" }), false),
        (json!({ "FromAConsulOfTomorrow": { "If": "monday" } }), false),
        (json!({ "Action": "from-a-consul-of-tomorrow" }), false),
        // About callers that can't be of this mesh.
        (json!({ "SourcePeer": "elsewhere" }), false),
        (json!({ "SourceNS": "elsewhere" }), false),
        (json!({ "DestinationPartition": "elsewhere" }), false),
    ] {
        for said in [json!({ "Action": "allow" }), json!({ "Permissions": permissions })] {
            let mut theirs = json!({ "SourceName": "a", "DestinationName": "b" });
            for fields in [&said, &condition] {
                theirs.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            }
            let intention = compile::intention(serde_json::from_value(theirs).unwrap());
            let intentions = Intentions::compile(intention, &[]);
            let policy = Policy { intentions, ..Policy::default() };
            assert_eq!(
                decide(&policy, "a", "b", PATH).is_allowed(),
                expected,
                "{condition} {said}"
            );
        }
    }
}

#[tokio::test]
async fn routes_come_from_the_key_and_a_bad_document_changes_nothing() {
    let agent = FakeConsul::start().await;
    let file = "[routes.\"/p.S/A\"]\ntimeout = \"1s\"\n[routes.\"/p.S/B\"]\ntimeout = \"1s\"";
    let mut watched = watch_consul(&config(&agent, file), &Declared::default()).await.unwrap();
    let timeout = |policy: &Policy, path: &str| policy.routes.of(path).timeout;
    assert_eq!(timeout(&watched.borrow(), "/p.S/A"), Some(Duration::from_secs(1)));

    agent.set_key(ROUTES, "[routes.\"/p.S/A\"]\ntimeout = \"2s\"");
    until(&mut watched, |p| timeout(p, "/p.S/A") == Some(Duration::from_secs(2))).await;
    assert_eq!(timeout(&watched.borrow(), "/p.S/B"), Some(Duration::from_secs(1)));

    for bad in ["[routes", "[rotues]", "[routes.\"/p.S/A\"]\ntimeout = 3"] {
        watched.mark_unchanged();
        agent.set_key(ROUTES, bad);
        tokio::time::timeout(DEADLINE, watched.changed()).await.expect(bad).unwrap();
        assert_eq!(timeout(&watched.borrow(), "/p.S/A"), Some(Duration::from_secs(2)), "{bad}");
    }
    agent.delete_key(ROUTES);
    until(&mut watched, |p| timeout(p, "/p.S/A") == Some(Duration::from_secs(1))).await;
}

#[tokio::test]
async fn trusted_is_who_the_program_the_file_or_consul_names() {
    let agent = FakeConsul::start().await;
    let ours = Trust { proxies: ["ours".into()].into(), ..Trust::default() };
    let declared = Declared { trust: ours, ..Declared::default() };
    let file = "trust.converters = ['filed']";
    let mut watched = watch_consul(&config(&agent, file), &declared).await.unwrap();
    let forward =
        |policy: &Policy| ["ours", "filed", "consuls"].map(|name| policy.trust.forwards(name));
    assert_eq!(forward(&watched.borrow()), [true, true, false]);
    assert_eq!(decide(&watched.borrow(), "a", "filed", PATH), Decision::Allowed);
    assert_eq!(decide(&watched.borrow(), "filed", "b", PATH), Decision::Allowed);
    assert_eq!(decide(&watched.borrow(), "a", "ours", PATH), Decision::DeniedByDefault);

    agent.set_key(TRUST, "[trust]\nproxies = ['consuls']");
    until(&mut watched, |p| p.trust.forwards("consuls")).await;
    assert_eq!(forward(&watched.borrow()), [true, true, true]);
    // What is wrong changes nothing, and an intention counts more than trust.
    agent.set_key(TRUST, "[trust]\nproxy = ['other']");
    agent.set_intention("*", "filed", "deny");
    until(&mut watched, |p| decide(p, "a", "filed", PATH) == Decision::DeniedByIntention).await;
    assert_eq!(forward(&watched.borrow()), [true, true, true]);
    agent.delete_key(TRUST);
    until(&mut watched, |p| !p.trust.forwards("consuls")).await;
}

#[tokio::test(start_paused = true)]
async fn until_consul_has_told_its_intentions_every_call_is_denied() {
    let mut agent = FakeConsul::start().await;
    agent.stop().await;
    let declared =
        Declared { calls: vec![("a".to_owned(), "b".to_owned())], ..Declared::default() };
    let mut watched = watch_consul(&config(&agent, ""), &declared).await.unwrap();
    for source in ["a", "operator"] {
        assert_eq!(decide(&watched.borrow(), source, "b", PATH), Decision::DeniedByIntention);
    }
    tokio::time::resume();
    agent.restart().await;
    until(&mut watched, |p| decide(p, "a", "b", PATH).is_allowed()).await;
}

#[test]
fn any_answer_is_intentions_that_decide_or_an_error() {
    let sound = json!([
        { "SourceName": "a", "DestinationName": "b", "Action": "deny", "SourceNS": "default" },
        { "SourceName": "*", "DestinationName": "b", "JWT": { "Providers": [{ "Name": "o" }] } },
        { "SourceName": "a", "DestinationName": "*", "Permissions": [{
            "Action": "allow",
            "HTTP": {
                "PathRegex": "/p.*", "Methods": ["POST"],
                "Header": [{ "Name": "x", "Exact": "y", "Invert": true }],
            },
        }] },
    ]);
    let read = |bytes: &[u8]| {
        let Ok(all) = serde_json::from_slice::<Vec<endpoints::Intention>>(bytes) else { return };
        let all: Vec<Intention> = all.into_iter().filter_map(compile::intention).collect();
        let policy = Policy { intentions: Intentions::compile(all, &[]), ..Policy::default() };
        for (source, destination) in [("a", "b"), ("a", "c"), ("c", "b")] {
            decide(&policy, source, destination, PATH);
        }
    };
    bolero::check!().with_iterations(1000).for_each(|bytes: &[u8]| read(bytes));
    bolero::check!().with_iterations(500).with_type::<Vec<Change>>().for_each(|changes| {
        let mut answer = sound.clone();
        changes.iter().for_each(|change| change.apply(&mut answer));
        read(answer.to_string().as_bytes());
    });
}

#[test]
fn any_text_under_a_key_is_what_it_should_be_or_changes_nothing() {
    let mut layered = Layered {
        declared: Default::default(),
        file: Default::default(),
        intentions: None,
        routes: Default::default(),
        trust: Default::default(),
        versions: Arc::default(),
    };
    bolero::check!().with_iterations(1000).with_max_len(256).for_each(|bytes: &[u8]| {
        let text = Some(String::from_utf8_lossy(bytes).into_owned());
        layered.take_routes(text.clone());
        layered.take_trust(text);
        let _ = layered.compile();
    });
}
