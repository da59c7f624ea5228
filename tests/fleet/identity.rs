//! Certificates that change, and peers that aren't who they were.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mesh::identity::dev::DevAuthority;
use tests::{
    fleet::Fleet,
    ground::Ground,
    load::Load,
    proxy::{Mode, Proxy},
    tls, until,
};

use super::LOW_RATE;

pub async fn roots_rotate_under_load(ground: Ground) {
    let fleet = Fleet::start(ground, 2).await;
    let operator = fleet.operator().await;
    let load = fleet.load(LOW_RATE).await;
    let begun = Instant::now();
    for _ in 0..2 {
        let serials = async || {
            let one = tls::serial(&operator, "hook-receiver", fleet.address(0)).await;
            let other = tls::serial(&operator, "hook-receiver", fleet.address(1)).await;
            Ok::<_, std::io::Error>((one?, other?))
        };
        let before = serials().await.unwrap();
        match &fleet.consul {
            Some(consul) => consul.rotate_root().await,
            None => DevAuthority::open(&fleet.config()).unwrap().rotate().unwrap(),
        }
        until("both show new leafs", || async {
            match serials().await {
                Ok(now) if now.0 != before.0 && now.1 != before.1 => Ok(()),
                now => Err(now),
            }
        })
        .await;
        // The client's leaf is a new one as well, and its connections are.
        load.run(Duration::from_secs(1)).await;
    }
    let report = load.stop().await;
    report.print(&format!("{ground:?}: two root rotations"), begun);
    report.assert_none_failed();
    fleet.stop().await;
}

pub async fn leafs_that_live_for_seconds_are_renewed_under_load(ground: Ground) {
    const LIFE: Duration = Duration::from_secs(2);
    let fleet = Fleet::start_with(ground, 2, &[("OMNI_DEV_IDENTITY__LEAF_TTL", "2s")]).await;
    let (clock, begun) = (SystemTime::now(), Instant::now());
    let load = fleet.load(LOW_RATE).await;
    until("each renewed its leaf ten times", || async {
        let renewed = [0, 1].map(|n| fleet.log(n).matches("leaf renewed").count());
        if renewed.iter().all(|renewed| *renewed >= 10) { Ok(()) } else { Err(renewed) }
    })
    .await;
    let report = load.stop().await;
    report.print(&format!("{ground:?}: ten leafs each of two instances"), begun);
    report.assert_none_failed();
    let answered = report.answered();
    assert!(answered.len() >= 10, "at least one of the two answers at any time");
    for serial in answered.keys() {
        let calls = report.samples.iter();
        let last = calls.rev().find(|call| call.outcome.as_deref().ok() == Some(*serial));
        let last = clock + last.unwrap().due.duration_since(begun);
        assert!(last < end_of_leaf(serial, LIFE), "{serial}");
    }
    fleet.stop().await;
}

/// When a leaf of the dev CA ends being valid: its serial tells when it was
/// made, and its times are whole seconds, with none of its life cut off.
fn end_of_leaf(serial: &str, life: Duration) -> SystemTime {
    let serial = uuid::Uuid::try_parse(serial).unwrap();
    let (seconds, nanos) = serial.get_timestamp().unwrap().to_unix();
    let end = Duration::new(seconds, nanos) + life + Duration::from_millis(999);
    UNIX_EPOCH + Duration::from_secs(end.as_secs())
}

/// The client goes on believing that the address is hook-receiver's: Consul
/// doesn't answer it any more.
pub async fn an_address_that_another_service_has_now_is_not_used(ground: Ground) {
    let mut fleet = Fleet::start(ground, 3).await;
    let own_link = Proxy::start(fleet.consul.as_ref().unwrap().address()).await;
    let config = fleet.config_with(&[("registry", format!("consul://{}", own_link.address))]);
    let channel = fleet.channel_with(&config).await;
    let load = Load::start(&channel, LOW_RATE);
    load.run(Duration::from_secs(1)).await;
    own_link.set(Mode::Stall);
    let address = fleet.address(0);
    let fault = fleet.kill(0);
    let port = address.port().to_string();
    let (audit, now) = fleet.serve("audit", &[("OMNI_SERVICES__AUDIT__PORT", &port)]).await;
    assert_eq!(now, address);
    load.run(Duration::from_secs(2)).await;
    let report = load.stop().await;
    report.print(&format!("{ground:?}: its address is audit's now"), fault);
    report.assert_none_failed();
    assert!(audit.log().contains("handshake refused"), "it was tried: {}", audit.log());
    tokio::task::spawn_blocking(move || audit.stop()).await.unwrap();
    fleet.stop().await;
}
