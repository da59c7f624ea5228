//! Two versions of the tests' own service, callers of both, and version-bridge
//! between them; each test for every way in which instances are found.

use std::{net::SocketAddr, path::PathBuf, process::Command, time::Duration};

use futures::stream;
use http::{Request as HttpRequest, Response as HttpResponse};
use mesh::{
    call::CALLER_HEADER,
    client::{Channel, Client},
    config::Config,
    identity, policy, registry,
    status::{Reason, reason},
};
use semver::VersionReq;
use tests::{
    fleet::Fleet,
    ground::{Consul, Ground},
    process::{self, Process},
    shop::{
        self, ECHO, GIVEN_UP, SLOW,
        proto::{
            v1::{self, order::Payment, shop_client::ShopClient as OldClient},
            v2::{self, shop_client::ShopClient as NewClient},
        },
    },
    until,
};
use tonic::{Code, Request, Status, body::Body};
use tonic_types::StatusExt as _;

/// The tests for one way in which instances are found.
macro_rules! on {
    ($ground:expr) => {
        crate::versions::on! { $ground;
            callers_of_the_old_version_are_answered_by_the_new_one
            callers_of_the_new_version_are_answered_by_the_old_one
            events_of_either_version_reach_consumers_of_either
            what_goes_with_a_call_goes_through_its_conversion
            what_can_not_be_converted_is_refused_by_name
            what_nobody_converts_is_left_to_those_who_speak_it
            a_canary_gets_its_share_and_rules_change_under_load
            people_see_versions_and_set_rules
            people_call_a_version_that_nobody_speaks
        }
    };
    ($ground:expr; $($test:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                crate::versions::$test($ground).await;
            }
        )*
    };
}
pub(crate) use on;

/// Shops in some versions, and a bridge between them.
struct Market {
    fleet: Fleet,
    shops: Vec<Process>,
    bridge: Option<(Process, SocketAddr)>,
}

impl Market {
    async fn open(ground: Ground, versions: &[&str], bridged: bool) -> Self {
        let mappings = shop::mappings().display().to_string();
        let settings = [("OMNI_MAPPINGS", mappings.as_str())];
        let mut fleet = Fleet::empty(Consul::start(ground).await, &settings).await;
        let bridge = match bridged {
            true => Some(fleet.serve("version-bridge", &[]).await),
            false => None,
        };
        let mut shops = Vec::new();
        for version in versions {
            shops.push(fleet.shop("shop", version).await);
        }
        Self { fleet, shops, bridge }
    }

    /// A way to call the shop, as an operator.
    async fn channel(&self) -> Channel {
        self.channel_as("operator").await
    }

    async fn channel_as(&self, party: &str) -> Channel {
        let config: Config = self.fleet.config();
        let registry = registry::registry(&config).unwrap();
        let identity = identity::authority(&config).unwrap().identity(party).await.unwrap();
        let policy = policy::policy(&config, &[]).await.unwrap();
        let client = Client::new(identity, registry, policy, Default::default());
        client.channel("shop").await.unwrap()
    }

    /// What `omni` answers to `args`, which it does.
    fn omni(&self, args: &[&str]) -> String {
        self.omni_warns(args).0
    }

    /// As [`Market::omni`], and what it warns of.
    fn omni_warns(&self, args: &[&str]) -> (String, String) {
        let mut command: Command = self.fleet.command(&process::binary());
        let output = command.args(args).output().unwrap();
        let (out, err) =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).into();
        assert!(output.status.success(), "{args:?}: {out}{err}");
        eprintln!("omni {args:?}: {out}{err}");
        (out, err)
    }

    /// Has the rules count, in a process that watches them.
    async fn rule(&self, rules: &str) {
        let file = self.fleet.config().data.join("rules.toml");
        std::fs::write(&file, rules).unwrap();
        self.omni(&["routes", "set", "shop", &file.display().to_string()]);
    }
}

fn old_order(id: &str) -> v1::Order {
    v1::Order {
        id: id.to_owned(),
        customer: "Ada".to_owned(),
        street: "Main Street 1".to_owned(),
        city: "London".to_owned(),
        price: 12.5,
        status: v1::Status::Open.into(),
        items: vec![v1::Item { name: "pen".to_owned(), count: 3 }],
        payment: Some(Payment::Card("4242".to_owned())),
        ordered_at: 1_700_000_000,
        ..v1::Order::default()
    }
}

fn new_order(id: &str) -> v2::PurchaseOrder {
    v2::PurchaseOrder {
        id: id.to_owned(),
        buyer: Some(v2::Buyer {
            name: "Ada".to_owned(),
            address: Some(v2::Address {
                street: "Main Street 1".to_owned(),
                city: "London".to_owned(),
            }),
        }),
        price_cents: 1250,
        currency: "EUR".to_owned(),
        state: v2::State::Open.into(),
        items: vec![v2::Item { name: "pen".to_owned(), count: 3 }],
        payment: Some(v2::purchase_order::Payment::Card("4242".to_owned())),
        ordered_at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
        ..v2::PurchaseOrder::default()
    }
}

fn receipt(order_id: &str) -> v1::Receipt {
    v1::Receipt { order_id: order_id.to_owned(), at: None }
}

fn new_receipt(order_id: &str) -> v2::Receipt {
    v2::Receipt { order_id: order_id.to_owned(), at: None }
}

async fn all<T>(mut answers: tonic::Streaming<T>) -> Vec<T> {
    let mut all = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        all.push(answer);
    }
    all
}

pub async fn callers_of_the_old_version_are_answered_by_the_new_one(ground: Ground) {
    let market = Market::open(ground, &["2.0.0"], true).await;
    let channel = market.channel().await;
    let (mut old, mut new) = (OldClient::new(channel.clone()), NewClient::new(channel));

    assert_eq!(old.buy(old_order("a")).await.unwrap().into_inner(), receipt("a"));
    let more = stream::iter(["b", "c"].map(old_order));
    assert_eq!(old.buy_all(more).await.unwrap().into_inner(), receipt("b,c"));
    let sold = all(new.list(new_receipt("")).await.unwrap().into_inner()).await;
    assert_eq!(sold, ["a", "b", "c"].map(new_order), "what the new version was told");
    let listed = all(old.list(receipt("")).await.unwrap().into_inner()).await;
    assert_eq!(listed, ["a", "b", "c"].map(old_order), "what the old one is told of it");
    let traded = old.trade(stream::iter(["d", "e"].map(old_order))).await.unwrap();
    let sent = |id| v1::Order { status: v1::Status::Sent.into(), ..old_order(id) };
    assert_eq!(all(traded.into_inner()).await, ["d", "e"].map(sent));
    // The same in both: its bytes pass as they are.
    let followed = old.follow(receipt("a")).await.unwrap();
    assert_eq!(all(followed.into_inner()).await, [receipt("a")]);
    market.fleet.stop().await;
}

pub async fn callers_of_the_new_version_are_answered_by_the_old_one(ground: Ground) {
    let market = Market::open(ground, &["1.4.0"], true).await;
    let channel = market.channel().await;
    let (mut old, mut new) = (OldClient::new(channel.clone()), NewClient::new(channel));

    assert_eq!(new.purchase(new_order("a")).await.unwrap().into_inner(), new_receipt("a"));
    let more = stream::iter(["b", "c"].map(new_order));
    assert_eq!(new.buy_all(more).await.unwrap().into_inner(), new_receipt("b,c"));
    let sold = all(old.list(receipt("")).await.unwrap().into_inner()).await;
    assert_eq!(sold, ["a", "b", "c"].map(old_order));
    let listed = all(new.list(new_receipt("")).await.unwrap().into_inner()).await;
    assert_eq!(listed, ["a", "b", "c"].map(new_order));
    let traded = new.trade(stream::iter(["d", "e"].map(new_order))).await.unwrap();
    let sent = |id| v2::PurchaseOrder { state: v2::State::Sent.into(), ..new_order(id) };
    assert_eq!(all(traded.into_inner()).await, ["d", "e"].map(sent));
    market.fleet.stop().await;
}

pub async fn events_of_either_version_reach_consumers_of_either(ground: Ground) {
    let mut market = Market::open(ground, &["1.0.0", "2.0.0"], false).await;
    let old_ledger = market.fleet.shop("ledger-old", "ledger-old").await;
    let new_ledger = market.fleet.shop("ledger-new", "ledger-new").await;
    let channel = market.channel().await;
    OldClient::new(channel.clone()).buy(old_order("a")).await.unwrap();
    NewClient::new(channel).purchase(new_order("b")).await.unwrap();
    let heard = |ledger: &Process, name: &str, id: &str| {
        let begin = format!("heard {name} {name} ");
        let lines = ledger.log();
        let mut orders = lines
            .lines()
            .filter_map(|line| line.strip_prefix(&begin))
            .map(|json| serde_json::from_str::<serde_json::Value>(json).unwrap());
        orders.find(|order| order["id"] == id)
    };
    for id in ["a", "b"] {
        until("the ledgers hear of it", || async {
            let old = heard(&old_ledger, "shop.v1.Order", id);
            let new = heard(&new_ledger, "shop.v2.PurchaseOrder", id);
            let (Some(old), Some(new)) = (old, new) else {
                return Err((old_ledger.log(), new_ledger.log()));
            };
            assert_eq!(old["customer"], "Ada");
            assert_eq!((&old["price"], &old["orderedAt"]), (&12.5.into(), &"1700000000".into()));
            assert_eq!(new["buyer"]["name"], "Ada");
            assert_eq!((&new["priceCents"], &new["state"]), (&"1250".into(), &"STATE_OPEN".into()));
            Ok(())
        })
        .await;
    }
    market.fleet.stop().await;
}

pub async fn what_goes_with_a_call_goes_through_its_conversion(ground: Ground) {
    let market = Market::open(ground, &["2.0.0"], true).await;
    let mut old = OldClient::new(market.channel().await);
    let given_up = || market.shops[0].log().matches(GIVEN_UP).count();

    let mut request = Request::new(old_order("a"));
    request.metadata_mut().insert(ECHO, "hear me".parse().unwrap());
    let answer = old.buy(request).await.unwrap();
    assert_eq!(answer.metadata().get(ECHO).unwrap(), "hear me");

    let refused = old.buy(old_order("")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let details = refused.get_error_details();
    assert_eq!(details.bad_request().unwrap().field_violations[0].field, "id");

    let mut request = Request::new(old_order(SLOW));
    request.set_timeout(Duration::from_millis(300));
    let late = old.buy(request).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
    let gives_up = async |times| {
        until("the shop knows that nobody waits", || async {
            if given_up() == times { Ok(()) } else { Err(given_up()) }
        })
        .await;
    };
    gives_up(1).await;
    let mut listed = old.list(receipt(SLOW)).await.unwrap().into_inner();
    assert_eq!(listed.message().await.unwrap(), Some(old_order("a")));
    drop(listed);
    gives_up(2).await;

    // A caller is who it was, and the shop's own intentions decide on it.
    let stranger = OldClient::new(market.channel_as("stranger").await).buy(old_order("b")).await;
    let denied = stranger.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(denied.message().contains("/svc/stranger may not call"), "{}", denied.message());
    // A proxy that says for whom it calls would not be decided on itself.
    let operator = market.fleet.operator().await.id();
    let mut request = Request::new(old_order("b"));
    request.metadata_mut().insert(CALLER_HEADER, operator.as_str().parse().unwrap());
    let gateway = OldClient::new(market.channel_as("gateway").await).buy(request).await;
    let denied = gateway.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(denied.message().contains("on behalf of"), "{}", denied.message());
    market.fleet.stop().await;
}

pub async fn what_can_not_be_converted_is_refused_by_name(ground: Ground) {
    let market = Market::open(ground, &["2.0.0"], true).await;
    let channel = market.channel().await;
    let mut old = OldClient::new(channel.clone());

    // Its mapping says nothing of an infinite price.
    let priceless = v1::Order { price: f64::INFINITY, ..old_order("a") };
    let refused = old.buy(priceless.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("price_cents"), "{}", refused.message());
    let orders = stream::iter([old_order("b"), priceless, old_order("c")]);
    let refused = match old.trade(orders).await {
        // It came to the second one before the first was answered.
        Err(refused) => refused,
        Ok(traded) => {
            let mut traded = traded.into_inner();
            loop {
                match traded.message().await {
                    Ok(Some(order)) => assert_eq!(order.id, "b"),
                    Ok(None) => panic!("it is refused"),
                    Err(refused) => break refused,
                }
            }
        }
    };
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("price_cents"), "{}", refused.message());

    let haggled = old.haggle(old_order("a")).await.unwrap_err();
    assert_eq!(reason(&haggled), Reason::VersionUnavailable);
    assert_eq!(haggled.code(), Code::FailedPrecondition);
    let details = haggled.get_error_details();
    let told = &details.error_info().unwrap().metadata;
    assert!(told["asked"].contains("/shop.v1.Shop/Haggle"), "{told:?}");
    assert_eq!(told["there"], "2.0.0 (shop.v2)");
    let unknown = call(&channel, "/shop.v9.Shop/Buy").await.unwrap_err();
    assert_eq!(reason(&unknown), Reason::VersionUnavailable);
    market.fleet.stop().await;

    let market = Market::open(ground, &["2.0.0"], false).await;
    let refused = OldClient::new(market.channel().await).buy(old_order("a")).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::VersionUnavailable);
    market.fleet.stop().await;
}

pub async fn what_nobody_converts_is_left_to_those_who_speak_it(ground: Ground) {
    let market = Market::open(ground, &["1.0.0", "2.0.0"], true).await;
    let mut old = OldClient::new(market.channel().await);
    market.rule("[[rules]]\nto = [{ version = '^2' }]\nfallback = ['^1']").await;
    until("the rule counts", || {
        let mut old = old.clone();
        async move {
            let answers = old.follow(receipt("")).await.unwrap().into_inner();
            match all(answers).await.remove(0).order_id {
                converted if converted == "2.0.0" => Ok(()),
                other => Err(other),
            }
        }
    })
    .await;
    // It is of the old version only, and was said no to by that one.
    let haggled = old.haggle(old_order("a")).await.unwrap_err();
    assert_eq!((haggled.code(), haggled.message()), (Code::Unimplemented, "not today"));
    market.fleet.stop().await;
}

async fn call(channel: &Channel, path: &str) -> Result<HttpResponse<Body>, Status> {
    let request = HttpRequest::post(path).header("te", "trailers").body(Body::empty()).unwrap();
    let response = tower::ServiceExt::oneshot(channel.clone(), request).await?;
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() != Code::Ok => Err(status),
        _ => Ok(response),
    }
}

pub async fn a_canary_gets_its_share_and_rules_change_under_load(ground: Ground) {
    const CALLS: usize = 10_000;
    let market = Market::open(ground, &["1.0.0", "1.1.0"], false).await;
    let channel = market.channel().await;
    // Which version answers.
    let version = async || {
        let answers = OldClient::new(channel.clone()).follow(receipt("")).await.unwrap();
        all(answers.into_inner()).await.remove(0).order_id
    };
    let canaries = async |calls| {
        let mut canaries = 0;
        for _ in 0..calls {
            canaries += usize::from(version().await == "1.1.0");
        }
        canaries
    };
    market
        .rule(
            "[[rules]]\nto = [{ version = '=1.0.0', weight = 95 }, \
             { version = '=1.1.0', weight = 5 }]",
        )
        .await;
    until("the rule counts", || async {
        let canaries = canaries(100).await;
        if canaries < 20 { Ok(()) } else { Err(canaries) }
    })
    .await;
    let canary = canaries(CALLS).await;
    assert!((CALLS * 4 / 100..=CALLS * 6 / 100).contains(&canary), "{canary} of {CALLS}");

    // Every call that fails ends the load with a panic.
    let load = tokio::spawn({
        let channel = channel.clone();
        async move {
            let mut calls = 0;
            let begun = std::time::Instant::now();
            while begun.elapsed() < Duration::from_secs(6) {
                OldClient::new(channel.clone()).buy(old_order("a")).await.unwrap();
                calls += 1;
            }
            calls
        }
    });
    for (share, rules) in [
        ("=1.1.0", "[[rules]]\nto = [{ version = '=1.1.0' }]"),
        ("=1.0.0", "[[rules]]\ncallers = ['operator']\nto = [{ version = '=1.0.0' }]"),
        ("=1.1.0", "[[rules]]\nto = [{ version = '^3' }]\nfallback = ['=1.1.0']"),
    ] {
        market.rule(rules).await;
        let other = if share == "=1.1.0" { "=1.0.0" } else { "=1.1.0" };
        // Within what the rules choose, nothing is left for the other.
        until("the rule counts", || async {
            let range: VersionReq = other.parse().unwrap();
            let mut client = OldClient::new(channel.clone().of_version(range));
            match client.list(receipt("")).await {
                Err(refused) if reason(&refused) == Reason::VersionUnavailable => Ok(()),
                answered => Err(answered.is_ok()),
            }
        })
        .await;
    }
    assert!(load.await.expect("no call fails") > 100);
    market.fleet.stop().await;
}

pub async fn people_see_versions_and_set_rules(ground: Ground) {
    let market = Market::open(ground, &["1.0.0", "2.0.0"], false).await;
    let versions = market.omni(&["versions", "--json"]);
    let versions: serde_json::Value = serde_json::from_str(&versions).unwrap();
    let told = |nth: usize| {
        let one = &versions[nth];
        (one["service"].as_str(), one["version"].as_str(), one["packages"][0].as_str())
    };
    assert_eq!(told(0), (Some("shop"), Some("2.0.0"), Some("shop.v2")));
    assert_eq!(told(1), (Some("shop"), Some("1.0.0"), Some("shop.v1")));

    let file = market.fleet.config().data.join("rules.toml");
    let path = file.display().to_string();
    let rules = "# the canary\n[[rules]]\nto = [{ version = '^2' }]\nfallback = ['^9']\n";
    std::fs::write(&file, rules).unwrap();
    let (checked, warned) = market.omni_warns(&["routes", "check", "shop", &path]);
    assert!(checked.contains("2.0.0") && warned.contains("no instance of shop is in ^9"));
    let (set, warned) = market.omni_warns(&["routes", "set", "shop", &path, "--as", "ann"]);
    assert!(set.contains("revision 1 counts") && warned.contains("no instance of shop is in ^9"));
    assert_eq!(market.omni(&["routes", "get", "shop"]), rules);

    std::fs::write(&file, "[[rules]]\nto = []\n").unwrap();
    let mut refused = market.fleet.command(&process::binary());
    let refused = refused.args(["routes", "set", "shop", &path]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("weight"));
    assert_eq!(market.omni(&["routes", "get", "shop"]), rules);

    std::fs::write(&file, "").unwrap();
    market.omni(&["routes", "set", "shop", &path]);
    assert!(market.omni(&["routes", "get", "shop"]).contains("has no rules"));
    let back = market.omni(&["routes", "rollback", "shop", "--to", "1"]);
    assert!(back.contains("revision 3 counts"), "{back}");
    assert_eq!(market.omni(&["routes", "get", "shop"]), rules);
    let history = market.omni(&["routes", "history", "shop", "--json"]);
    let history: serde_json::Value = serde_json::from_str(&history).unwrap();
    let by: Vec<_> = history["revisions"].as_array().unwrap().iter().map(|r| &r["by"]).collect();
    assert_eq!(by, ["operator-ann", "operator", "operator"]);
    assert!(market.omni(&["routes", "get"]).contains("shop"));
    market.fleet.stop().await;
}

/// By reflection of the bridge, which tells of both versions.
pub async fn people_call_a_version_that_nobody_speaks(ground: Ground) {
    let market = Market::open(ground, &["2.0.0"], true).await;
    let order = r#"{"id": "a", "customer": "Ada", "price": 12.5, "status": "STATUS_OPEN"}"#;
    let bought = market.omni(&["call", "--json", "shop.v1.Shop/Buy", order]);
    assert_eq!(bought.trim(), r#"{"orderId":"a"}"#);
    let listed = market.omni(&["call", "--json", "shop.v2.Shop/List", "{}"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((&listed["priceCents"], &listed["state"]), (&"1250".into(), &"STATE_OPEN".into()));
    let listed = market.omni(&["call", "--json", "shop.v1.Shop/List", "{}"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((&listed["price"], &listed["customer"]), (&12.5.into(), &"Ada".into()));

    let by_name = ["call", "--json", "--service", "shop", "shop.v1.Shop/Buy", order];
    assert_eq!(market.omni(&by_name).trim(), r#"{"orderId":"a"}"#);
    for (method, why) in [("shop.v1.Shop/Haggle", "there are 2.0.0"), ("till.v1.Till/Open", "till")]
    {
        let mut refused = market.fleet.command(&process::binary());
        let refused = refused.args(["call", method, "{}"]).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains(why), "{said}");
    }

    // The tool itself, where it is installed: with the real backends.
    if let (Ground::RealConsul, Some((_, bridge))) = (ground, &market.bridge) {
        let agent = market.fleet.consul.as_ref().unwrap().address();
        let leaf = format!("http://{agent}/v1/agent/connect/ca/leaf/operator");
        let http = reqwest::Client::builder().use_rustls_tls().build().unwrap();
        let leaf = http.get(leaf).send().await.unwrap().text().await.unwrap();
        let leaf: serde_json::Value = serde_json::from_str(&leaf).unwrap();
        let folder = market.fleet.config().data;
        for (file, part) in [("cert.pem", "CertPEM"), ("key.pem", "PrivateKeyPEM")] {
            std::fs::write(folder.join(file), leaf[part].as_str().unwrap()).unwrap();
        }
        let tools = PathBuf::from(std::env::var_os("OMNI_TEST_BIN_DIR").unwrap());
        let mut grpcurl = Command::new(tools.join("grpcurl"));
        let grpcurl = grpcurl.current_dir(&folder).args(["-insecure", "-d", order]);
        let grpcurl = grpcurl.args(["-cert", "cert.pem", "-key", "key.pem"]);
        let output = grpcurl.args([&bridge.to_string(), "shop.v1.Shop/Buy"]).output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("orderId"), "{said}");
        // An answer that is nothing but a status.
        let refused = [&bridge.to_string(), "shop.v1.Shop/Buy"];
        let mut grpcurl = Command::new(tools.join("grpcurl"));
        let grpcurl = grpcurl.current_dir(&folder).args(["-insecure", "-d", "{}"]);
        let grpcurl = grpcurl.args(["-cert", "cert.pem", "-key", "key.pem"]);
        let output = grpcurl.args(refused).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("Code: InvalidArgument"), "{said}");
    }
    market.fleet.stop().await;
}
