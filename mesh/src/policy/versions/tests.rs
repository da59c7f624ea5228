//! Rules, what they choose, and where they are kept: in files and in Consul.

use std::time::Duration;

use fake_consul::FakeConsul;
use rand::{SeedableRng as _, rngs::SmallRng};
use tokio::sync::watch;

use super::{book::MAX_REVISIONS, *};
use crate::config::Config;

const DEADLINE: Duration = Duration::from_secs(10);

fn versions(text: &str) -> Versions {
    let mut versions = Versions::default();
    versions.set("shop", VersionRules::parse(text).unwrap());
    versions
}

fn chosen(versions: &Versions, caller: &str, path: &str, header: Option<&str>) -> Vec<String> {
    let mut request = Request::post(path);
    if let Some(value) = header {
        request = request.header("x-canary", value);
    }
    let request = request.body(()).unwrap();
    let order = versions.choose("shop", caller, &request, &mut SmallRng::seed_from_u64(1));
    order.iter().flat_map(Order::ranges).map(ToString::to_string).collect()
}

#[test]
fn the_first_rule_that_matches_in_all_counts() {
    let versions = versions(
        r#"
        [[rules]]
        callers = ["billing", "audit"]
        methods = ["/shop.v1.Shop/Buy", "/shop.v1.Stock/*"]
        to = [{ version = "=1.0.0" }]
        [[rules]]
        headers = { x-canary = "yes" }
        to = [{ version = "^2" }]
        fallback = ["^1.2", "^1"]
        [[rules]]
        to = [{ version = "^1" }]
        "#,
    );
    for (caller, path, header, expected) in [
        ("billing", "/shop.v1.Shop/Buy", None, vec!["=1.0.0"]),
        ("audit", "/shop.v1.Stock/Count", Some("yes"), vec!["=1.0.0"]),
        ("audit", "/shop.v1.Shop/Look", Some("yes"), vec!["^2", "^1.2", "^1"]),
        ("other", "/shop.v1.Shop/Buy", Some("no"), vec!["^1"]),
    ] {
        assert_eq!(chosen(&versions, caller, path, header), expected);
    }
    let request = Request::post("/shop.v1.Shop/Buy").body(()).unwrap();
    assert!(versions.choose("till", "billing", &request, &mut rand::rng()).is_none());
}

#[test]
fn ranges_are_drawn_by_weight_and_those_without_one_never() {
    let versions = versions(
        r#"
        [[rules]]
        to = [
            { version = "^1", weight = 95 },
            { version = "^2", weight = 5 },
            { version = "^3", weight = 0 },
        ]
        fallback = ["^4"]
        "#,
    );
    let (mut rng, mut firsts) = (SmallRng::seed_from_u64(7), HashMap::new());
    let request = Request::post("/shop.v1.Shop/Buy").body(()).unwrap();
    for _ in 0..10_000 {
        let order = versions.choose("shop", "a", &request, &mut rng).unwrap();
        let ranges: Vec<String> = order.ranges().map(ToString::to_string).collect();
        assert!(ranges.len() == 3 && ranges[2] == "^4", "{ranges:?}");
        *firsts.entry(ranges[0].clone()).or_insert(0) += 1;
    }
    assert!((400..600).contains(&firsts["^2"]), "{firsts:?}");
    assert_eq!(firsts.len(), 2);
}

#[test]
fn what_can_not_be_meant_is_refused_by_name() {
    let many = format!("callers = [{}]\nto = [{{ version = \"1\" }}]", "'a',".repeat(65));
    for (wrong, named) in [
        ("", "to"),
        ("to = []", "weight"),
        ("to = [{ version = '1', weight = 0 }]", "weight"),
        ("to = [{ version = '1', weight = 10001 }]", "10001"),
        ("to = [{ version = 'one' }]", "unexpected character"),
        ("to = [{ version = '1' }]\nfallback = ['latest']", "unexpected character"),
        ("to = [{ version = '1' }]\ncallers = ['A']", "callers"),
        ("to = [{ version = '1' }]\nmethods = ['shop.v1.Shop/Buy']", "methods"),
        ("to = [{ version = '1' }]\nmethods = ['*']", "methods"),
        ("to = [{ version = '1' }]\nheaders = { X-A = 'b' }", "X-A"),
        ("to = [{ version = '1' }]\nheaders = { a = \"\\n\" }", "value of `a`"),
        ("to = [{ version = '1' }]\nwhen = 'always'", "when"),
        ("to = [{ version = '1' }]\n[[rules]]\nto = [{ version = '2' }]", "never reached"),
        (many.as_str(), "callers"),
    ] {
        let why = VersionRules::parse(&format!("[[rules]]\n{wrong}")).unwrap_err();
        assert!(why.contains(named), "{why}");
    }
    let range = format!("[[rules]]\nto = [{{ version = '{}' }}]", [">1"; 20].join(","));
    assert!(VersionRules::parse(&range).unwrap_err().contains("range"));
    let long = format!("# {}", "x".repeat(MAX_BYTES));
    assert!(VersionRules::parse(&long).unwrap_err().contains("bytes"));
    assert!(VersionRules::parse("").unwrap().is_empty());
}

/// Runs `test` where rules are kept in files, and where Consul keeps them.
async fn in_both(test: impl AsyncFn(Config, Option<&FakeConsul>)) {
    let (data, agent) = (tempfile::tempdir().unwrap(), FakeConsul::start().await);
    let data = ("data", data.path().display().to_string());
    let config = |flags: &[_]| Config::from_sources(None, HashMap::new(), flags).unwrap();
    test(config(std::slice::from_ref(&data)), None).await;
    test(config(&[data, ("registry", agent.url())]), Some(&agent)).await;
}

/// Waits until the rules of `shop` are those in `text`.
async fn until(watched: &mut watch::Receiver<Arc<Versions>>, text: &str) {
    let mut expected = Versions::default();
    expected.set("shop", VersionRules::parse(text).unwrap());
    tokio::time::timeout(DEADLINE, watched.wait_for(|versions| **versions == expected))
        .await
        .unwrap_or_else(|_| panic!("{text} never counts"))
        .unwrap();
}

const ONE: &str = "[[rules]]\nto = [{ version = '=1.0.0' }]   # a comment\n";
const TWO: &str = "[[rules]]\nto = [{ version = '=2.0.0' }]\n";

#[tokio::test]
async fn rules_count_at_once_and_keep_their_history() {
    in_both(async |config, _| {
        let book = RuleBook::open(&config).unwrap();
        let mut watched = follow(&config).await.unwrap();
        until(&mut watched, "").await;
        assert_eq!(book.history("shop").await.unwrap(), History::default());

        assert_eq!(book.set("shop", "ann", ONE).await.unwrap().number, 1);
        until(&mut watched, ONE).await;
        assert_eq!(book.set("shop", "bob", TWO).await.unwrap().number, 2);
        until(&mut watched, TWO).await;
        let why = book.set("shop", "eve", "[[rules]]\nto = []").await.unwrap_err();
        assert!(why.to_string().contains("weight"), "{why}");
        assert!(book.set("Shop", "eve", ONE).await.is_err());
        let history = book.history("shop").await.unwrap();
        let told = history.revisions.iter().map(|r| (r.number, r.by.as_str(), r.rules.as_str()));
        assert_eq!(told.collect::<Vec<_>>(), [(1, "ann", ONE), (2, "bob", TWO)]);
        assert_eq!(book.all().await.unwrap(), BTreeMap::from([("shop".to_owned(), Ok(history))]));

        book.set("shop", "ann", "").await.unwrap();
        until(&mut watched, "").await;
        for _ in 0..MAX_REVISIONS {
            book.set("shop", "ann", ONE).await.unwrap();
        }
        let history = book.history("shop").await.unwrap();
        assert_eq!(history.revisions.len(), MAX_REVISIONS);
        assert_eq!(history.current().unwrap().number, 3 + MAX_REVISIONS as u64);
        // Who starts later sees them at once.
        until(&mut follow(&config).await.unwrap(), ONE).await;
    })
    .await;
}

#[tokio::test]
async fn what_is_wrong_where_they_are_kept_changes_nothing() {
    in_both(async |config, agent| {
        let book = RuleBook::open(&config).unwrap();
        book.set("shop", "ann", ONE).await.unwrap();
        let mut watched = follow(&config).await.unwrap();
        until(&mut watched, ONE).await;
        let mut history = book.history("shop").await.unwrap();
        history.revisions[0].rules = "[[rules]]\nto = []".to_owned();
        for wrong in [serde_json::to_string(&history).unwrap().as_str(), "not JSON", ""] {
            match agent {
                Some(agent) => agent.set_key("omnibridge/versions/shop", wrong),
                None => std::fs::write(config.data.join("versions/shop.json"), wrong).unwrap(),
            }
            // Another service's come after it, and count.
            book.set("till", "ann", ONE).await.unwrap();
            let counts = watched.wait_for(|now| now.by_service.contains_key("till"));
            tokio::time::timeout(DEADLINE, counts).await.expect("they count").unwrap();
            assert_eq!(watched.borrow().by_service["shop"], VersionRules::parse(ONE).unwrap());
            book.set("till", "ann", "").await.unwrap();
            until(&mut watched, ONE).await;
        }
    })
    .await;
}

#[tokio::test]
async fn of_those_who_set_rules_at_once_each_sees_what_went_before() {
    in_both(async |config, _| {
        let book = RuleBook::open(&config).unwrap();
        let all = (0..8).map(|_| book.set("shop", "ann", ONE));
        let set = futures::future::join_all(all).await;
        let mut numbers: Vec<u64> = set.iter().flatten().map(|r| r.number).collect();
        numbers.sort_unstable();
        assert!(!numbers.is_empty() && numbers.iter().copied().eq(1..=numbers.len() as u64));
        for why in set.iter().filter_map(|set| set.as_ref().err()) {
            assert!(why.to_string().contains("at the same time"), "{why}");
        }
        assert_eq!(book.history("shop").await.unwrap().revisions.len(), numbers.len());
    })
    .await;
}
