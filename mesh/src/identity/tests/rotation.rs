//! Leafs and roots are replaced while calls run, and by several processes on
//! one data directory.

use super::{
    live::{DEADLINE, Load, Server, authority, renewals},
    *,
};

/// Short enough that a test sees it renewed: twice a second.
const SHORT: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_renewed_leafs_fail_no_call() {
    let folder = tempfile::tempdir().unwrap();
    let ca = authority(folder.path(), SHORT);
    let mut audit = ca.identity("audit").await.unwrap();
    let server = Server::start(audit.clone()).await;
    let mut gateway = ca.identity("gateway").await.unwrap();
    let load = Load::start(gateway.clone(), folder.path(), &[server.address]).await;
    tokio::join!(renewals(&mut audit, 10), renewals(&mut gateway, 10));
    let called = load.stop().await;
    println!("{} calls over 10 renewals, {} leafs answered", called.calls, called.serials.len());
    // One for each connection; which leafs the server has by then is chance.
    assert!(called.serials.len() > 3, "calls go to the new leafs: {:?}", called.serials);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_roots_fail_no_call() {
    let folder = tempfile::tempdir().unwrap();
    // As two processes have it.
    let (one, other) = (authority(folder.path(), DAY), authority(folder.path(), DAY));
    let mut audit = one.identity("audit").await.unwrap();
    let mut second = other.identity("audit").await.unwrap();
    let servers = [Server::start(audit.clone()).await, Server::start(second.clone()).await];
    let mut gateway = other.identity("gateway").await.unwrap();
    let addresses = servers.each_ref().map(|server| server.address);
    let load = Load::start(gateway.clone(), folder.path(), &addresses).await;
    for _ in 0..3 {
        load.goes_on().await;
        one.rotate().unwrap();
        let signer = signer(folder.path());
        for identity in [&mut audit, &mut second, &mut gateway] {
            until_signed_by(identity, &signer).await;
        }
    }
    load.goes_on().await;
    let called = load.stop().await;
    println!("{} calls over 3 rotations, {} leafs answered", called.calls, called.serials.len());
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test]
async fn who_missed_two_rotations_is_understood_and_understands() {
    let folder = tempfile::tempdir().unwrap();
    let ca = authority(folder.path(), DAY);
    // Has heard of nothing since.
    let before = ca.identity("a").await.unwrap().current();
    let before = frozen(before);
    ca.rotate().unwrap();
    ca.rotate().unwrap();
    let after = ca.identity("b").await.unwrap();
    assert_accepted(&before, &after, "b").await;
    assert_accepted(&after, &before, "a").await;
    ca.rotate().unwrap();
    let after = ca.identity("b").await.unwrap();
    connect(&before, &after, "b").await.0.expect_err("three are one too many");
    connect(&before, &after, "b").await.1.expect_err("three are one too many");
}

#[tokio::test]
async fn a_leaf_made_while_a_rotation_was_half_done_is_replaced_when_it_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let ca = authority(folder.path(), DAY);
    let mut a = ca.identity("a").await.unwrap();
    let file = folder.path().join("ca/signer.pem");
    let before = std::fs::read(&file).unwrap();
    let own = Identity::clone(&a);
    // The order in which a rotation writes: roots, then signer.
    ca.rotate().unwrap();
    let after = std::fs::read(&file).unwrap();
    let new_signer = signer(folder.path());
    crate::files::replace(&file, &before).unwrap();
    let roots = std::fs::read_to_string(folder.path().join("ca/roots.pem")).unwrap();
    let old_signer = signer(folder.path());
    let trusted = async {
        while a.current().roots_pem != roots || issuer(&a.current()) != old_signer {
            a.changed().await;
        }
    };
    tokio::time::timeout(DEADLINE, trusted).await.expect("the new root is trusted");
    crate::files::replace(&file, &after).unwrap();
    until_signed_by(&mut a, &new_signer).await;
    assert_accepted(&a, &own, "a").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_start_at_once_on_an_empty_folder_make_one_ca() {
    let _ = aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let started: Vec<_> = (0..8)
        .map(|_| {
            let folder = folder.path().to_owned();
            tokio::task::spawn_blocking(move || {
                // Each with a configuration of its own, as processes have.
                let flags = [("data", folder.display().to_string())];
                let config = crate::config::Config::from_sources(None, Default::default(), &flags);
                dev::DevAuthority::open(&config.unwrap()).unwrap()
            })
        })
        .collect();
    let mut parties = vec![];
    for started in started {
        parties.push(started.await.unwrap().identity("a").await.unwrap());
    }
    for other in &parties {
        assert_accepted(&parties[0], other, "a").await;
    }
}

/// The subject of the root that signs now.
fn signer(folder: &std::path::Path) -> String {
    let signer = std::fs::read(folder.join("ca/signer.pem")).unwrap();
    let root = CertificateDer::from_pem_slice(&signer).unwrap();
    let (_, root) = x509_parser::parse_x509_certificate(&root).unwrap();
    root.subject().to_string()
}

/// Who signed the leaf in use.
fn issuer(material: &Material) -> String {
    let leaf = &material.certified.cert[0];
    let (_, leaf) = x509_parser::parse_x509_certificate(leaf).unwrap();
    leaf.issuer().to_string()
}

async fn until_signed_by(identity: &mut Identity, signer: &str) {
    let renewed = async {
        while issuer(&identity.current()) != signer {
            identity.changed().await;
        }
    };
    tokio::time::timeout(DEADLINE, renewed).await.expect("it has a leaf of the new root");
}
