//! What the kernel does for every call and every event, apart from waiting:
//! looking up whom to call and what is known of a method, deciding an intention,
//! reading and writing what goes along in headers, and taking an event apart and
//! putting it together.

#![allow(clippy::unwrap_used, reason = "a benchmark that can't go on fails")]

use std::{collections::HashMap, sync::Arc, time::Duration};

use divan::{AllocProfiler, Bencher, black_box};
use hostile::{Site, site::SERVICE};
use http::Request;
use mesh::messages::lifecycle::v1::ServiceChanged;
use mesh::{
    client::{Client, InstanceState, UpstreamInstance},
    config::Config,
    descriptors,
    events::{Attributes, Event},
    identity::SpiffeId,
    intercept::Interceptors,
    policy::{Action, Intention, Intentions},
    registry::{Registry as _, fixed::StaticRegistry},
    telemetry::trace,
};
use tokio::sync::watch;

/// What is allocated is part of what is promised.
#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

const METHOD: &str = "/omnibridge.hooks.v1.HookReceiver/Receive";
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn main() {
    divan::main();
}

/// A service's instances, as every call reads them off what is watched.
#[divan::bench(args = [3, 100])]
fn look_up_the_instances(bencher: Bencher<'_, '_>, instances: u16) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let addresses: Vec<String> = (1..=instances).map(|n| format!("10.0.0.1:{n}")).collect();
    let flags = [("registry", "static:".to_owned())];
    let mut config = Config::from_sources(None, HashMap::new(), &flags).unwrap();
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    config.instances.insert("echo".to_owned(), addresses);
    let registry = StaticRegistry::new(&config).unwrap();
    let watched = runtime.block_on(registry.watch("echo")).unwrap();
    bencher.bench(|| watched.borrow().clone());
}

/// A service's instances looked up, and one chosen by what their calls cost: all
/// that a call does before it is sent. They are real ones, connected.
#[divan::bench(args = [1, 3, 30])]
fn look_up_and_pick(bencher: Bencher<'_, '_>, instances: usize) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (_site, channel) = runtime.block_on(async {
        let site = Site::start(|_| {}).await;
        let mut addresses = vec![site.service];
        while addresses.len() < instances {
            addresses.push(site.instance("127.0.0.1:0").await.address);
        }
        let flags = [("registry", "static:".to_owned())];
        let mut config = Config::from_sources(None, HashMap::new(), &flags).unwrap();
        config.instances.insert(SERVICE.to_owned(), addresses);
        let registry = Arc::new(StaticRegistry::new(&config).unwrap());
        let policy = watch::channel(Arc::default()).1;
        let client = Client::new(site.caller.clone(), registry, policy, Interceptors::default());
        let channel = client.channel(SERVICE).await.unwrap();
        let ready = |i: &UpstreamInstance| i.state == InstanceState::Ready;
        while !client.upstreams().await[0].instances.iter().all(ready) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        (site, channel)
    });
    bencher.bench(|| channel.pick().unwrap());
}

#[divan::bench]
fn look_up_a_method(bencher: Bencher<'_, '_>) {
    descriptors::add(api::DESCRIPTORS).unwrap();
    bencher
        .bench(|| descriptors::method(black_box(METHOD)).is_some_and(|method| method.idempotent));
}

/// The table of a mesh with so many services, each allowed to call the next.
fn table(services: usize) -> Intentions {
    let intentions = (0..services).map(|n| Intention {
        source: format!("service-{n}"),
        destination: format!("service-{}", n + 1),
        action: Some(Action::Allow),
        permissions: vec![],
    });
    Intentions::compile(intentions, &[])
}

#[divan::bench(args = [10, 100, 1000])]
fn decide_an_intention(bencher: Bencher<'_, '_>, services: usize) {
    let table = table(services);
    let caller = SpiffeId::of_service("omnibridge.internal", "service-5").unwrap();
    let request = Request::post("/p.v1.S/M").body(()).unwrap();
    bencher.bench(|| table.decide(black_box(&caller), "service-6", black_box(&request)));
}

/// The last of ten permissions decides, by regular expression and header.
#[divan::bench]
fn decide_an_intention_by_path_and_header(bencher: Bencher<'_, '_>) {
    let mut toml = "source = 'a'\ndestination = 'b'\n".to_owned();
    for n in 0..10 {
        toml += &format!(
            "[[permissions]]\naction = 'allow'\npath_regex = '/p[.]v1[.]S{n}/[A-Z].*'\n\
             headers = [{{ name = 'x-tenant', exact = 'blue' }}]\n"
        );
    }
    let intention: Intention = toml::from_str(&toml).unwrap();
    let table = Intentions::compile([intention], &[]);
    let caller = SpiffeId::of_service("omnibridge.internal", "a").unwrap();
    let request = Request::post("/p.v1.S9/Method").header("x-tenant", "blue").body(()).unwrap();
    assert!(table.decide(&caller, "b", &request).is_allowed());
    bencher.bench(|| table.decide(black_box(&caller), "b", black_box(&request)));
}

#[divan::bench]
fn read_a_spiffe_id() -> SpiffeId {
    black_box("spiffe://omnibridge.internal/ns/default/dc/dc1/svc/hook-receiver").parse().unwrap()
}

#[divan::bench]
fn read_a_traceparent() -> bool {
    trace::parse(black_box(TRACEPARENT)).is_some()
}

#[divan::bench]
fn write_a_traceparent(bencher: Bencher<'_, '_>) {
    let context = trace::parse(TRACEPARENT).unwrap();
    bencher.bench(|| trace::format(black_box(&context)));
}

fn event() -> Event {
    let message = ServiceChanged { service: "audit".into(), ..Default::default() };
    Event::typed("/services/audit", "c", &message).unwrap()
}

#[divan::bench]
fn make_a_typed_event() -> Event {
    event()
}

#[divan::bench]
fn read_a_typed_event(bencher: Bencher<'_, '_>) {
    let event = event();
    bencher.bench(|| event.decode::<ServiceChanged>().unwrap());
}

#[divan::bench]
fn write_an_events_headers(bencher: Bencher<'_, '_>) {
    let event = event();
    bencher.bench(|| black_box(&event).attributes.pairs().len());
}

#[divan::bench]
fn read_an_events_headers(bencher: Bencher<'_, '_>) {
    let event = event();
    let pairs = event
        .attributes
        .pairs()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into_owned()));
    let pairs: Vec<_> = pairs.collect();
    bencher
        .with_inputs(|| pairs.clone())
        .bench_values(|pairs| Attributes::from_pairs(pairs).unwrap());
}

/// The form an event's attributes have in the outbox.
#[divan::bench]
fn write_an_events_row(bencher: Bencher<'_, '_>) {
    let event = event();
    bencher.bench(|| serde_json::to_string(black_box(&event.attributes)).unwrap());
}
