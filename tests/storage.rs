//! What must hold when a database has no room.

use std::time::{Duration, Instant};

use http::StatusCode;
use tests::{Layout, Mesh, mesh::new_id, turn::Turn, until};
use watchdog::Watchdog;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_nothing_is_acknowledged_that_could_be_lost() {
    let _turn = Turn::beside_others().await;
    let _watchdog = Watchdog::start();
    let mesh = Mesh::start(Layout::Serve).await;
    let mut acknowledged = vec![];
    let post = async || mesh.post(&new_id(), b"{}").await;
    for _ in 0..10 {
        let answer = post().await;
        acknowledged.push(answer.body["correlation_id"].as_str().unwrap().to_owned());
    }
    mesh.limit_files("hook-receiver", Some(0));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        let answer = post().await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
        let after = answer.headers["retry-after"].to_str().unwrap();
        assert!(after.parse::<u64>().unwrap() >= 1, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    mesh.limit_files("hook-receiver", None);
    let answer = until("it is well again by itself", || async {
        let answer = post().await;
        if answer.status == StatusCode::ACCEPTED { Ok(answer) } else { Err(answer) }
    });
    acknowledged.push(answer.await.body["correlation_id"].as_str().unwrap().to_owned());
    mesh.each_is_in_the_trail(&acknowledged).await;
    mesh.stop().await;
}
