//! The Connect authority against a fake agent.

use std::collections::HashMap;

use fake_consul::FakeConsul;

use super::*;
use crate::{fuzz::Change, identity::tests::connect};

const DEADLINE: Duration = Duration::from_secs(10);

fn authority(agent: &FakeConsul) -> ConnectAuthority {
    let flags = [("registry", agent.url()), ("identity", "consul:".into())];
    ConnectAuthority::new(&Config::from_sources(None, HashMap::new(), &flags).unwrap()).unwrap()
}

async fn assert_accepted(client: &Identity, server: &Identity) {
    let service = server.id().name().to_owned();
    let (connected, accepted) = connect(client, server, &service).await;
    connected.expect("the client is content");
    accepted.expect("the server is content");
}

#[tokio::test]
async fn leafs_of_the_same_ca_let_each_other_in() {
    let agent = FakeConsul::start().await;
    let authority = authority(&agent);
    let a = authority.identity("a").await.unwrap();
    let b = authority.identity("b").await.unwrap();
    assert_eq!((a.id().name(), b.id().name()), ("a", "b"));
    assert!(a.id().trust_domain().ends_with(".consul"));
    assert_accepted(&a, &b).await;
}

#[tokio::test]
async fn a_rotated_root_brings_a_new_leaf_and_refuses_nobody() {
    let agent = FakeConsul::start().await;
    let authority = authority(&agent);
    let mut a = authority.identity("a").await.unwrap();
    // Stays with what it has: it hasn't heard of the rotation yet.
    let before = authority.identity("b").await.unwrap().current();
    let before = Identity::new(watch::channel(before).1);
    let serial = a.current().serial.clone();

    agent.rotate_root();
    let both = agent.roots();
    let renewed = async {
        loop {
            let now = a.current();
            if now.serial != serial && both.iter().all(|root| now.roots_pem.contains(root.trim())) {
                return;
            }
            a.changed().await;
        }
    };
    tokio::time::timeout(DEADLINE, renewed).await.expect("a new leaf under both roots");
    assert_accepted(&a, &before).await;
    assert_accepted(&before, &a).await;
    assert_accepted(&a, &authority.identity("c").await.unwrap()).await;
}

#[test]
fn a_leaf_is_not_shown_before_its_root_is_trusted_and_new_roots_count_at_once() {
    let mut ca = fake_consul::ConnectCa::new();
    let leaf = |ca: &mut fake_consul::ConnectCa| -> Leaf {
        let mut leaf: Leaf = serde_json::from_value(ca.leaf("a")).unwrap();
        // Without the root that the one before it signed, as of a CA that
        // can't cross-sign.
        let end = "-----END CERTIFICATE-----\n";
        leaf.chain.truncate(leaf.chain.find(end).unwrap() + end.len());
        leaf
    };
    let roots = |ca: &fake_consul::ConnectCa| -> Roots {
        serde_json::from_value(ca.describe_roots()).unwrap()
    };
    let (before, first) = (roots(&ca), leaf(&mut ca));
    ca.rotate();
    let (after, second) = (roots(&ca), leaf(&mut ca));

    let mut shown = first.clone();
    let serial = |leaf: &Leaf| make(leaf, &after).unwrap().serial;
    let held = next(&mut shown, &second, &before).unwrap();
    assert_eq!(held.serial, serial(&first));
    let released = next(&mut shown, &second, &after).unwrap();
    assert_eq!(released.serial, serial(&second));
    assert!(shown == second);

    // The root of the leaf in use is taken away before there is a new leaf.
    let mut shown = first.clone();
    let only_new = Roots { roots: after.roots[..1].to_vec() };
    let cut_off = next(&mut shown, &first, &only_new).unwrap();
    assert_eq!((cut_off.serial.clone(), cut_off.roots.len()), (serial(&first), 1));
    assert!(!cut_off.is_vouched_for());
}

#[tokio::test]
async fn the_leaf_stays_in_use_while_consul_is_down() {
    let mut agent = FakeConsul::start().await;
    let authority = authority(&agent);
    let mut a = authority.identity("a").await.unwrap();
    agent.stop().await;
    let changed = tokio::time::timeout(Duration::from_millis(300), a.changed());
    assert!(changed.await.is_err(), "an outage is no change");
    assert_accepted(&a, &a.clone()).await;
    agent.rotate_root();
    agent.restart().await;
    let changed = tokio::time::timeout(DEADLINE, a.changed());
    changed.await.expect("renewed once consul is back");
}

#[tokio::test(start_paused = true)]
async fn without_a_leaf_nothing_begins_and_the_error_says_what_to_do() {
    let mut agent = FakeConsul::start().await;
    agent.stop().await;
    let error = authority(&agent).identity("a").await.unwrap_err().to_string();
    for part in ["`a`", "ca/leaf/a", "connect { enabled = true }"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn it_needs_a_consul_registry() {
    let flags = [("identity", "consul:".to_owned())];
    let config = Config::from_sources(None, HashMap::new(), &flags).unwrap();
    let error = crate::identity::authority(&config).err().unwrap().to_string();
    assert!(error.contains("registry = \"consul://host:port\""), "{error}");
}

#[test]
fn any_answer_is_a_leaf_with_its_roots_or_an_error() {
    let mut ca = fake_consul::ConnectCa::new();
    let (leaf, roots) = (ca.leaf("a"), ca.describe_roots());
    let read = |leaf: &[u8], roots: &[u8]| {
        let leaf = serde_json::from_slice::<Leaf>(leaf);
        let roots = serde_json::from_slice::<Roots>(roots);
        if let (Ok(leaf), Ok(roots)) = (leaf, roots)
            && let Ok(material) = make(&leaf, &roots)
        {
            assert!(!roots.is_empty() && !material.roots.is_empty());
        }
    };
    bolero::check!().with_iterations(500).for_each(|bytes: &[u8]| read(bytes, bytes));
    bolero::check!()
        .with_iterations(300)
        .with_type::<(Vec<Change>, Vec<Change>, Vec<(u16, u8)>)>()
        .for_each(|(to_leaf, to_roots, to_pem)| {
            let (mut leaf, mut roots) = (leaf.clone(), roots.clone());
            let mut pem = leaf["CertPEM"].as_str().unwrap().as_bytes().to_vec();
            for (place, byte) in to_pem {
                let place = usize::from(*place) % pem.len();
                pem[place] = byte & 0x7f;
            }
            leaf["CertPEM"] = String::from_utf8(pem).unwrap().into();
            to_leaf.iter().for_each(|change| change.apply(&mut leaf));
            to_roots.iter().for_each(|change| change.apply(&mut roots));
            read(leaf.to_string().as_bytes(), roots.to_string().as_bytes());
        });
}
