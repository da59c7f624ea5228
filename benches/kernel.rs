//! What the kernel does for every call and every event, apart from waiting:
//! deciding an intention, and taking an event apart and putting it together.

#![allow(clippy::unwrap_used, reason = "a benchmark that can't go on fails")]

use api::lifecycle::v1::ServiceChanged;
use divan::{Bencher, black_box};
use http::Request;
use mesh::{
    events::{Attributes, Event},
    identity::SpiffeId,
    policy::{Action, Intention, Intentions},
    telemetry::trace,
};

fn main() {
    divan::main();
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
    trace::parse(black_box("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")).is_some()
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
fn write_and_read_an_events_headers(bencher: Bencher<'_, '_>) {
    let event = event();
    bencher.bench(|| {
        let pairs = event.attributes.pairs();
        Attributes::from_pairs(pairs.into_iter().map(|(name, value)| (name.to_owned(), value)))
    });
}
