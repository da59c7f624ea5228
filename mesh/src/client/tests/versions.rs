//! Which version answers, and what becomes of a call that none does.

use tonic_types::StatusExt as _;

use super::*;
use crate::policy::{Trust, VersionRules, Versions};

const OLD: &str = "/shop.v1.Shop/Buy";
const NEW: &str = "/shop.v2.Shop/Buy";

impl Mesh {
    /// An instance of this version that speaks these packages.
    async fn version(&self, version: &str, packages: &[&str]) -> Server {
        let mut server = self.server("called", always_ok).await;
        server.instance.version = version.parse().unwrap();
        server.instance.packages = packages.iter().map(ToString::to_string).collect();
        server
    }

    /// The rules of `called` are these from now on.
    fn rule(&self, rules: &str) {
        let mut versions = Versions::default();
        versions.set("called", VersionRules::parse(rules).unwrap());
        self.policy.send_modify(|policy| {
            *policy = Arc::new(Policy { versions: Arc::new(versions), ..Policy::clone(policy) });
        });
    }
}

/// How many calls each one gets of `calls`, asked with `range`.
async fn share<const N: usize>(
    channel: &Channel,
    servers: [&Server; N],
    calls: u32,
    path: &str,
    range: Option<&str>,
) -> [u32; N] {
    let before = servers.map(Server::asked);
    for _ in 0..calls {
        ask(channel, path, range).await.unwrap();
    }
    let after = servers.map(Server::asked);
    std::array::from_fn(|nth| after[nth] - before[nth])
}

async fn ask(channel: &Channel, path: &str, range: Option<&str>) -> Result<(), Status> {
    let mut request = Request::builder().method("POST").uri(path).header("te", "trailers");
    if let Some(range) = range {
        request = request.header(VERSION_HEADER, range);
    }
    let request = request.body(Body::empty()).unwrap();
    let answer = tower::ServiceExt::oneshot(channel.clone(), request);
    tokio::time::timeout(DEADLINE, answer).await.expect("it is answered").map(drop)
}

#[tokio::test]
async fn a_call_goes_to_those_who_speak_its_package_and_are_in_its_range() {
    let mesh = Mesh::new("");
    let one = mesh.version("1.0.0", &["shop.v1"]).await;
    let both = mesh.version("1.2.0", &["shop.v1", "shop.v2"]).await;
    let two = mesh.version("2.0.0", &["shop.v2"]).await;
    mesh.are(&[&one, &both, &two]);
    let client = mesh.client().await;
    let channel = client.channel("called").await.unwrap();
    connected(&client, 3).await;
    let servers = [&one, &both, &two];

    let share_of = async |path, range| share(&channel, servers, 50, path, range).await;
    let [a, b, c] = share_of(OLD, None).await;
    assert!(a + b == 50 && c == 0, "{a} {b} {c}");
    let [a, b, c] = share_of(NEW, None).await;
    assert!(a == 0 && b + c == 50, "{a} {b} {c}");
    assert_eq!(share_of(OLD, Some("^1.2")).await, [0, 50, 0]);
    assert_eq!(share_of(OLD, Some("=1.0.0")).await, [50, 0, 0]);
    assert_eq!(share_of(NEW, Some(">=2, <3")).await, [0, 0, 50]);
    // What every server has is asked of any.
    let everybodys = "/grpc.reflection.v1.ServerReflection/Info";
    assert_eq!(share_of(everybodys, Some("^2")).await, [0, 0, 50]);
    assert_eq!(share_of(everybodys, Some("=1.0.0")).await, [50, 0, 0]);

    let of_two = channel.clone().of_package("shop.v2").of_version("^1".parse().unwrap());
    assert_eq!(share(&of_two, servers, 20, everybodys, None).await, [0, 20, 0]);

    let of_one = channel.clone().of_version("=1.0.0".parse().unwrap());
    assert_eq!(share(&of_one, servers, 20, OLD, None).await, [20, 0, 0]);
    assert_eq!(share(&of_one, servers, 20, OLD, Some("^1.2")).await, [0, 20, 0]);
    let wrong = ask(&channel, OLD, Some("one")).await.unwrap_err();
    assert_eq!(reason(&wrong), Reason::InvalidRequest);
    assert!(wrong.message().contains("omni-version"), "{}", wrong.message());
}

#[tokio::test]
async fn rules_choose_live_and_what_is_away_is_passed_over() {
    let mesh = Mesh::new("");
    let old = mesh.version("1.0.0", &["shop.v1"]).await;
    let new = mesh.version("1.1.0", &["shop.v1"]).await;
    mesh.are(&[&old, &new]);
    let client = mesh.client().await;
    let channel = client.channel("called").await.unwrap();
    connected(&client, 2).await;
    let servers = [&old, &new];

    mesh.rule("[[rules]]\nto = [{ version = '=1.0.0' }]");
    assert_eq!(share(&channel, servers, 20, OLD, None).await, [20, 0]);
    mesh.rule("[[rules]]\ncallers = ['caller']\nto = [{ version = '=1.1.0' }]");
    assert_eq!(share(&channel, servers, 20, OLD, None).await, [0, 20]);
    mesh.rule("[[rules]]\ncallers = ['other']\nto = [{ version = '=1.1.0' }]");
    assert_eq!(share(&channel, servers, 20, OLD, Some("=1.0.0")).await, [20, 0]);
    mesh.rule(
        "[[rules]]\nto = [{ version = '=1.0.0', weight = 1 }, { version = '=1.1.0', weight = 9 }]",
    );
    let [few, many] = share(&channel, servers, 200, OLD, None).await;
    assert!(few > 0 && few < 60 && few + many == 200, "{few} {many}");
    // Within what the rules choose, a caller's range counts.
    assert_eq!(share(&channel, servers, 20, OLD, Some("=1.0.0")).await, [20, 0]);

    mesh.rule("[[rules]]\nto = [{ version = '^3' }]\nfallback = ['^2', '=1.0.0']");
    assert_eq!(share(&channel, servers, 20, OLD, None).await, [20, 0]);
    mesh.rule("[[rules]]\nto = [{ version = '^3' }]");
    let refused = ask(&channel, OLD, None).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::VersionUnavailable);
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let details = refused.get_error_details();
    let told = &details.error_info().unwrap().metadata;
    assert_eq!(told["service"], "called");
    assert!(told["asked"].contains(OLD) && told["asked"].contains("^3"), "{told:?}");
    assert_eq!(told["there"], "1.1.0 (shop.v1); 1.0.0 (shop.v1)");
    mesh.rule("");
    ask(&channel, OLD, None).await.unwrap();
}

#[tokio::test]
async fn an_instance_that_fails_leaves_the_call_to_the_next_range() {
    let mesh = Mesh::new("");
    let mut canary = mesh.server("called", |_, _| async { lose() }).await;
    canary.instance.version = semver::Version::new(2, 0, 0);
    let stable = mesh.version("1.0.0", &[]).await;
    mesh.are(&[&canary, &stable]);
    mesh.rule("[[rules]]\nto = [{ version = '^2' }]\nfallback = ['^1']");
    let client = mesh.client().await;
    let channel = client.channel("called").await.unwrap();
    connected(&client, 2).await;
    for _ in 0..20 {
        call(&channel, IDEMPOTENT).await.unwrap();
    }
    assert!(canary.asked() > 0 && stable.asked() == 20);
}

#[tokio::test]
async fn a_call_that_another_version_could_answer_goes_to_be_converted() {
    let mesh = Mesh::new("");
    let new = mesh.version("2.0.0", &["shop.v2"]).await;
    mesh.are(&[&new]);
    let client = mesh.client().await;
    let channel = client.channel("called").await.unwrap();
    ask(&channel, NEW, None).await.unwrap();
    let refused = ask(&channel, OLD, None).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::VersionUnavailable, "nobody converts");

    let (told, mut tells) = tokio::sync::mpsc::channel(8);
    let answer = move |_, request: Request<Body>| {
        let header = |name| request.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
        let ranges = (header(VERSION_HEADER), header(ORDER_HEADER));
        let seen = (request.uri().path().to_owned(), header(SERVICE_HEADER), ranges);
        let told = told.clone();
        async move {
            told.send(seen).await.unwrap();
            ok()
        }
    };
    let mut bridge = mesh.server("version-bridge", answer).await;
    bridge.instance.service = "version-bridge".to_owned();
    mesh.are(&[&new, &bridge]);
    for _ in 0..20 {
        let refused = ask(&channel, OLD, None).await.unwrap_err();
        assert_eq!(reason(&refused), Reason::VersionUnavailable, "it isn't trusted to convert");
    }
    mesh.policy.send_modify(|policy| {
        let trust = Trust { converters: ["version-bridge".into()].into(), ..Trust::default() };
        *policy = Arc::new(Policy { trust, ..Policy::clone(policy) });
    });
    let seen = async {
        while ask(&channel, OLD, None).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, seen).await.expect("it is seen");
    tells.recv().await.unwrap();
    // What the bridge is told: the caller's range, and those of the rules.
    let mut asked = async |channel: &Channel, path: &str, range| {
        ask(channel, path, range).await.unwrap();
        let (seen, service, (asked, order)) = tells.recv().await.unwrap();
        assert_eq!((seen.as_str(), service.as_deref()), (path, Some("called")));
        [asked, order].map(Option::unwrap_or_default)
    };
    assert_eq!(asked(&channel, OLD, None).await, ["", ""]);
    assert_eq!(asked(&channel, OLD, Some("^1.2")).await, ["^1.2", ""]);
    let of_two = channel.clone().of_version("^2".parse().unwrap());
    assert_eq!(asked(&of_two, OLD, None).await, ["^2", ""]);
    assert_eq!(asked(&channel, "/shop.v3.Shop/Buy", None).await, ["", ""]);
    mesh.rule("[[rules]]\nto = [{ version = '>=2' }]\nfallback = ['^1']");
    assert_eq!(asked(&channel, OLD, Some("^2")).await, ["^2", ">=2;^1"]);
    mesh.rule("[[rules]]\nto = [{ version = '^3' }]\nfallback = ['^2', '^1']");
    assert_eq!(asked(&channel, OLD, None).await, ["", "^2;^1"], "nobody is in the first one");

    // Who speaks it is preferred, unless the rules say otherwise.
    mesh.rule("[[rules]]\nto = [{ version = '>=2' }]");
    let old = mesh.version("1.0.0", &["shop.v1"]).await;
    mesh.are(&[&new, &old, &bridge]);
    connected(&client, 2).await;
    assert_eq!(asked(&channel, OLD, None).await, ["", ">=2"]);
    mesh.rule("");
    ask(&channel, OLD, None).await.unwrap();
    assert_eq!((old.asked(), bridge.asked()), (1, 8));

    // The bridge itself sends nothing to itself.
    let identity = mesh.authority.identity("version-bridge").await.unwrap();
    let registry = Arc::new(Told(mesh.instances.subscribe()));
    let client = Client::new(identity, registry, mesh.policy.subscribe(), Interceptors::default());
    let channel = client.channel("called").await.unwrap();
    let refused = ask(&channel, "/shop.v3.Shop/Buy", None).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::VersionUnavailable);
}
