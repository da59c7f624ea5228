//! A process for each service, started and kept up by the coordinator: they are
//! killed, replaced, multiplied and left alone, under load.

use std::{
    net::TcpListener,
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use http::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::{
    Layout, Mesh, backends::Backends, load::Load, mesh::new_id, page, process::Process, until,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// The tests for one layout.
macro_rules! on {
    ($layout:expr) => {
        crate::children::on! { $layout;
            each_child_is_killed_in_turn_and_nothing_is_lost
            services_are_replaced_and_multiplied_without_a_failed_call
            a_crash_loop_is_told_and_takes_nobody_down
            a_child_that_hangs_is_replaced
            no_child_outlives_its_parent
            a_broker_that_is_away_is_done_without
        }
    };
    ($layout:expr; $($test:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let _turn = tests::turn::Turn::on($layout).await;
                let _watchdog = watchdog::Watchdog::start();
                crate::children::$test($layout).await;
            }
        )*
    };
}
pub(crate) use on;

/// Every how many milliseconds a webhook is posted.
const WEBHOOKS: Duration = Duration::from_millis(100);
/// How many calls are begun a second.
const RATE: u32 = 50;
/// How long there is between two kills: what dies again within 5 s is taken to loop.
const BETWEEN: Duration = Duration::from_millis(1500);
/// How long a webhook's sender goes on trying.
const PATIENCE: Duration = Duration::from_secs(20);

/// Webhooks at a steady rate, each sent again until it is acknowledged.
struct Senders {
    stop: CancellationToken,
    running: JoinHandle<Sent>,
}

/// What became of webhooks.
#[derive(Default)]
struct Sent {
    /// Their correlations.
    acknowledged: Vec<String>,
    /// How often one wasn't acknowledged at once, and what the answers were.
    refused: Vec<String>,
}

impl Senders {
    fn start(mesh: &Arc<Mesh>) -> Self {
        let stop = CancellationToken::new();
        let (mesh, stopped) = (mesh.clone(), stop.clone());
        let running = tokio::spawn(async move {
            let gateway = mesh.address("gateway");
            let sent = Arc::new(Mutex::new(Sent::default()));
            let mut due = tokio::time::interval(WEBHOOKS);
            let mut senders = tokio::task::JoinSet::new();
            while !stopped.is_cancelled() {
                due.tick().await;
                let (mesh, sent) = (mesh.clone(), sent.clone());
                senders.spawn(async move {
                    let (delivery, begun) = (new_id(), Instant::now());
                    loop {
                        let answer = mesh.try_post_to(gateway, &delivery, b"{}", &[]).await;
                        let refused = match answer {
                            Ok(answer) if answer.status == StatusCode::ACCEPTED => {
                                let correlation = answer.body["correlation_id"].as_str().unwrap();
                                sent.lock().unwrap().acknowledged.push(correlation.to_owned());
                                return;
                            }
                            Ok(answer) => format!("{}: {}", answer.status, answer.body["detail"]),
                            Err(why) => why,
                        };
                        sent.lock().unwrap().refused.push(refused.clone());
                        assert!(begun.elapsed() < PATIENCE, "never acknowledged: {refused}");
                        tokio::time::sleep(WEBHOOKS).await;
                    }
                });
            }
            senders.join_all().await;
            Arc::into_inner(sent).unwrap().into_inner().unwrap()
        });
        Self { stop, running }
    }

    async fn stop(self) -> Sent {
        self.stop.cancel();
        self.running.await.unwrap()
    }
}

/// How `omni status` shows `unit`.
fn status(mesh: &Mesh, unit: &str) -> Value {
    let output = mesh.omni(&["status", "--json"]);
    let units: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let found =
        units["units"].as_array().and_then(|units| units.iter().find(|u| u["unit"] == unit));
    found.cloned().unwrap_or_else(|| String::from_utf8_lossy(&output.stderr).into())
}

async fn becomes(mesh: &Mesh, unit: &str, state: &str) -> Value {
    until(&format!("{unit} is {state}"), || async {
        match status(mesh, unit) {
            status if status["state"] == state => Ok(()),
            other => Err(other),
        }
    })
    .await;
    status(mesh, unit)
}

/// Does as `args` say, and succeeds.
fn done(mesh: &Mesh, args: &[&str]) -> String {
    let output = mesh.omni(args);
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "omni {args:?}: {said}");
    said.into_owned()
}

pub async fn each_child_is_killed_in_turn_and_nothing_is_lost(layout: Layout) {
    let mesh = Arc::new(Mesh::start(layout).await);
    becomes(&mesh, "service-coordinator", "ready").await;
    let load = Load::reads(
        &mesh.channel_as("operator", "hook-receiver").await,
        RATE,
        Duration::from_secs(10),
    );
    let senders = Senders::start(&mesh);
    let services = ["hook-receiver", "audit", "gateway", "version-bridge"];
    let begun = Instant::now();
    let rounds = std::env::var("OMNI_TEST_ROUNDS").map_or(3, |rounds| rounds.parse().unwrap());
    let kills = services.into_iter().cycle().take(rounds * services.len());
    let mut gaps = Vec::new();
    for service in kills {
        tokio::time::sleep(BETWEEN).await;
        let child = mesh.children("gateway").into_iter().find(|child| child.service == service);
        let child = child.unwrap_or_else(|| panic!("{service} doesn't run"));
        let killed = Instant::now();
        child.kill();
        until("another one runs in its place", || async {
            let children = mesh.children("gateway");
            let another = children.iter().any(|c| c.service == service && *c != child);
            if another { Ok(()) } else { Err(children) }
        })
        .await;
        becomes(&mesh, service, "ready").await;
        if service == "hook-receiver" {
            gaps.push((killed, Instant::now()));
        }
    }
    let (sent, report) = (senders.stop().await, load.stop().await);
    report.print(&format!("{layout:?}: {rounds} rounds of kills, calls of hook-receiver"), begun);
    println!(
        "{layout:?}: {} webhooks acknowledged, {} answers were others, in {:.0?}",
        sent.acknowledged.len(),
        sent.refused.len(),
        begun.elapsed(),
    );
    report.without_those_in(&gaps).assert_none_failed();
    mesh.each_is_in_the_trail(&sent.acknowledged).await;
    let children = mesh.children("gateway");
    assert_eq!(children.len(), services.len());
    Arc::into_inner(mesh).unwrap().stop().await;
    assert!(!children.iter().any(|child| child.lives()), "an orphan is left");
}

pub async fn services_are_replaced_and_multiplied_without_a_failed_call(layout: Layout) {
    let mesh = Arc::new(Mesh::start(layout).await);
    becomes(&mesh, "service-coordinator", "ready").await;
    // Another coordinator, which runs nothing of it: it isn't the one to be told.
    let other = mesh.command_of(&["serve", "service-coordinator", "--with-parent"]);
    let other = Process::start(other, mesh.config().data.join("other.log"));
    until("the other one is ready", || async {
        let log = other.log();
        if log.contains("service-coordinator is ready") { Ok(()) } else { Err(log) }
    })
    .await;
    let begun = Instant::now();
    let load = Load::start(&mesh.channel_as("operator", "hook-receiver").await, RATE);
    let senders = Senders::start(&mesh);
    done(&mesh, &["scale", "hook-receiver", "3"]);
    until("there are three", || async {
        // Consul keeps those that other tests have killed for a while.
        let all = status(&mesh, "hook-receiver")["instances"].clone();
        let healthy = all.as_array().unwrap().iter().filter(|one| one["healthy"] == true);
        if healthy.count() == 3 { Ok(()) } else { Err(all) }
    })
    .await;

    done(&mesh, &["restart", "hook-receiver"]);
    done(&mesh, &["restart", "gateway"]);
    done(&mesh, &["scale", "gateway", "2"]);
    done(&mesh, &["restart", "gateway"]);
    done(&mesh, &["scale", "hook-receiver", "1"]);
    done(&mesh, &["restart", "audit"]);
    let (sent, report) = (senders.stop().await, load.stop().await);
    report.print(&format!("{layout:?}: replaced and multiplied"), begun);
    report.assert_none_failed();
    assert_eq!(sent.refused, Vec::<String>::new(), "of {}", sent.acknowledged.len());
    mesh.each_is_in_the_trail(&sent.acknowledged).await;

    let drained = done(&mesh, &["drain", "audit"]);
    assert!(drained.contains("audit was drained"), "{drained}");
    becomes(&mesh, "audit", "stopped").await;
    done(&mesh, &["restart", "audit"]);
    becomes(&mesh, "audit", "ready").await;
    for (args, why) in [
        (&["restart", "service-coordinator"][..], "it is who would do it"),
        (&["drain", "nobody"], "there is no unit `nobody`"),
    ] {
        let output = mesh.omni(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(why), "{said}");
    }
    assert!(other.stop().success());
    Arc::into_inner(mesh).unwrap().stop().await;
}

pub async fn a_child_that_hangs_is_replaced(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    becomes(&mesh, "service-coordinator", "ready").await;
    let children = mesh.children("gateway");
    let hung = children.iter().find(|child| child.service == "version-bridge").unwrap();
    hung.pause();
    until("it is given up", || async {
        let status = status(&mesh, "version-bridge");
        if status["restarts"] == 1 { Ok(()) } else { Err(status) }
    })
    .await;
    becomes(&mesh, "version-bridge", "ready").await;
    assert!(!hung.lives());
    mesh.stop().await;
}

pub async fn a_crash_loop_is_told_and_takes_nobody_down(layout: Layout) {
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mesh = Mesh::start_with(layout, &[("OMNI_SERVICES__VERSION_BRIDGE__PORT", port)]).await;
    becomes(&mesh, "version-bridge", "crash looping").await;
    let reason = status(&mesh, "version-bridge")["reason"].to_string();
    assert!(reason.contains("failures in a row") && reason.contains("can't listen"), "{reason}");
    assert_eq!(mesh.post(&new_id(), b"{}").await.status, StatusCode::ACCEPTED);
    let changes = mesh.topic("services.lifecycle");
    let told = changes.iter().any(|event| {
        event["data"]["unit"] == "version-bridge"
            && event["data"]["to"] == "UNIT_STATE_CRASH_LOOPING"
    });
    assert!(told, "{changes:#?}");
    drop(taken);
    done(&mesh, &["restart", "version-bridge"]);
    becomes(&mesh, "version-bridge", "ready").await;
    mesh.stop().await;
}

pub async fn no_child_outlives_its_parent(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    becomes(&mesh, "service-coordinator", "ready").await;
    let answer = mesh.post(&new_id(), b"{}").await;
    let correlation = answer.body["correlation_id"].as_str().unwrap().to_owned();
    let children = mesh.children("gateway");
    assert_eq!(children.len(), 4, "{children:?}");
    mesh.take_process("gateway").kill();
    until("its children are gone", || async {
        let left: Vec<_> = children.iter().filter(|child| child.lives()).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    mesh.restart("gateway").await;
    mesh.each_is_in_the_trail(&[correlation]).await;
    mesh.stop().await;
}

pub async fn a_broker_that_is_away_is_done_without(layout: Layout) {
    let folder = tempfile::tempdir().unwrap();
    // What is embedded is there when the mesh is.
    let outside = if layout == Layout::Processes { Layout::Fakes } else { layout };
    let outside = Backends::start(outside, folder.path()).await;
    outside.stop_broker().await;
    let settings = outside.settings();
    let (_, events) = settings.iter().find(|(name, _)| name == "OMNI_EVENTS").unwrap();
    let mesh = Mesh::start_with(layout, &[("OMNI_EVENTS", events.clone())]).await;
    becomes(&mesh, "service-coordinator", "degraded").await;
    let mut acknowledged = Vec::new();
    for when in ["when all starts", "later"] {
        becomes(&mesh, "kafka", "failed").await;
        let status = becomes(&mesh, "hook-receiver", "degraded").await;
        assert!(status["reason"].to_string().contains("kafka"), "{when}: {status}");
        let answer = mesh.post(&new_id(), b"{}").await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{when}: {}", answer.body);
        acknowledged.push(answer.body["correlation_id"].as_str().unwrap().to_owned());

        outside.start_broker().await;
        for unit in ["kafka", "hook-receiver", "audit", "gateway"] {
            becomes(&mesh, unit, "ready").await;
        }
        mesh.each_is_in_the_trail(&acknowledged).await;
        outside.stop_broker().await;
    }
    outside.start_broker().await;
    mesh.stop().await;
}

pub async fn a_database_that_is_away_is_waited_for(layout: Layout) {
    let folder = tempfile::tempdir().unwrap();
    let outside = Backends::start(layout, folder.path()).await;
    outside.stop_database();
    let mesh = Mesh::begin(layout, &[]).await;
    until("it is missed", || async {
        let log = mesh.log("gateway");
        if log.contains("postgres") { Ok(()) } else { Err(log) }
    })
    .await;
    outside.start_database();
    mesh.healthy().await;
    becomes(&mesh, "service-coordinator", "ready").await;
    assert!(mesh.post(&new_id(), b"{}").await.status == StatusCode::ACCEPTED);

    outside.stop_database();
    becomes(&mesh, "postgres", "failed").await;
    let answer = mesh.post(&new_id(), b"{}").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.body);
    outside.start_database();
    for unit in ["postgres", "hook-receiver", "audit", "gateway"] {
        becomes(&mesh, unit, "ready").await;
    }
    let answer = mesh.post(&new_id(), b"{}").await;
    let correlation = answer.body["correlation_id"].as_str().unwrap().to_owned();
    mesh.each_is_in_the_trail(&[correlation]).await;
    mesh.stop().await;
}

pub async fn nobody_has_to_read_what_up_prints(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    assert!(mesh.take_process("gateway").stop().success());
    let mut up = Command::from(mesh.command_of(&["up", "--admin-port", "0"]));
    let mut up = up.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    BufReader::new(up.stdout.take().unwrap()).lines().next_line().await.unwrap().unwrap();
    // From here on what it prints fails.
    mesh.healthy().await;
    for unit in ["gateway", "version-bridge", "service-coordinator"] {
        becomes(&mesh, unit, "ready").await;
    }
    assert_eq!(mesh.post(&new_id(), b"{}").await.status, StatusCode::ACCEPTED);
    done(&mesh, &["restart", "version-bridge"]);
    let pid = Pid::from_raw(up.id().unwrap().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(30), up.wait()).await;
    assert!(ended.expect("it drains").unwrap().success());
}

pub async fn the_page_shows_what_a_reader_sees(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    for unit in ["version-bridge", "service-coordinator"] {
        becomes(&mesh, unit, "ready").await;
    }
    for block in page::blocks("starting-services.md") {
        if block.has("pkill") {
            let children = mesh.children("gateway");
            children.iter().find(|c| c.service == "version-bridge").unwrap().kill();
            becomes(&mesh, "version-bridge", "failed").await;
            becomes(&mesh, "version-bridge", "ready").await;
            until("its events are relayed", || async {
                let story = done(&mesh, &["events", "trace", "version-bridge"]);
                if story.lines().count() == 4 { Ok(()) } else { Err(story) }
            })
            .await;
        }
        block.follow(|command| mesh.shell(command));
    }
    mesh.stop().await;
}
