//! Faults under load: what was acknowledged must be in its topic and in the trail,
//! once, in the order of its key.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mesh::events::broker::{self, Scan};
use serde_json::json;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Layout, Mesh,
    fault::Fault,
    load::percentile,
    mesh::{new_id, signature},
    until,
};

/// The topic of the source `demo`.
const TOPIC: &str = "hooks.demo";
/// How long one request may take before it is made again.
const REQUEST: Duration = Duration::from_secs(5);
/// How long a sender waits before it makes a request again.
const AGAIN: Duration = Duration::from_millis(50);
/// How many events a second one key has at most: it has one on its way at a
/// time, and must catch up after a pause.
const RATE_OF_KEY: u32 = 4;
/// How long nothing new may come before what is missing counts as lost.
const PATIENCE: Duration = Duration::from_secs(45);
/// How long after the last fault everything must be out of the outbox.
const CATCH_UP: Duration = Duration::from_secs(120);
/// How long nothing new may come before all is there.
const SETTLED: Duration = Duration::from_secs(3);
/// How often a line tells how it goes.
const TELL: Duration = Duration::from_secs(10);

/// What is done to a mesh.
#[derive(Clone, Copy, Debug)]
pub struct Chaos {
    /// How it is laid out: each service must be a process of its own.
    pub layout: Layout,
    /// What goes wrong.
    pub fault: Fault,
    /// For how long.
    pub time: Duration,
    /// How many webhooks a second are sent.
    pub rate: u32,
}

/// What became of it.
#[derive(Debug)]
pub struct Verdict {
    /// How many webhooks were acknowledged, each at last.
    pub acknowledged: usize,
    /// How many times a process was killed, or the broker failed.
    pub faults: u64,
    /// How long after the last fault's end the outbox was empty.
    pub caught_up: Duration,
    /// How many requests had to be made again.
    pub repeats: u64,
    /// How many records the topic has beyond one an event: consumers pass these
    /// over.
    pub raw_duplicates: usize,
    /// How long the requests took that were acknowledged: half of them, all but
    /// one in a hundred, all.
    pub answered: [Duration; 3],
    /// How long it took from the first request to the acknowledgement.
    pub with_repeats: [Duration; 3],
    /// Acknowledged, but not in the topic or not in the trail.
    pub lost: usize,
    /// One delivery with several events, or one event with several entries.
    pub doubled: usize,
    /// Events after a later one of their key, in the topic or in the trail.
    pub disordered: usize,
}

impl Verdict {
    /// Whether there were faults, nothing was lost, doubled or out of order, and all
    /// went out soon enough.
    pub fn holds(&self) -> bool {
        let happened = self.acknowledged > 0 && self.faults > 0 && self.caught_up < CATCH_UP;
        happened && self.lost == 0 && self.doubled == 0 && self.disordered == 0
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [half, most, all] = self.answered;
        writeln!(
            f,
            "{} webhooks acknowledged, {} faults, {} requests repeated, {} raw duplicates",
            self.acknowledged, self.faults, self.repeats, self.raw_duplicates
        )?;
        writeln!(f, "acknowledged after p50 {half:.1?}, p99 {most:.1?}, max {all:.1?}")?;
        let [half, most, all] = self.with_repeats;
        writeln!(f, "with repeats, p50 {half:.1?}, p99 {most:.1?}, max {all:.1?}")?;
        writeln!(f, "the outbox was empty {:.1?} after the last fault", self.caught_up)?;
        writeln!(f, "lost {}", self.lost)?;
        writeln!(f, "doubled {}", self.doubled)?;
        write!(f, "disordered {}", self.disordered)
    }
}

/// One acknowledged webhook.
struct Sent {
    key: usize,
    number: u64,
    delivery: String,
    answered: Duration,
    with_repeats: Duration,
}

/// What all senders share.
struct Sender {
    http: reqwest::Client,
    url: String,
    run: String,
    acknowledged: AtomicU64,
    repeats: AtomicU64,
}

impl Chaos {
    /// Does it, and looks what is left.
    ///
    /// # Panics
    /// When the mesh can't be started, or doesn't come back at the end.
    pub async fn run(self) -> Verdict {
        let port = free_port();
        let settings = [("OMNI_SERVICES__GATEWAY__PORT", port.to_string())];
        let mesh = Arc::new(Mesh::start_with(self.layout, &settings).await);
        let http = reqwest::Client::builder().tls_certs_only([]).timeout(REQUEST).build();
        let sender = Arc::new(Sender {
            http: http.expect("it needs nothing"),
            url: format!("http://127.0.0.1:{port}/hooks/demo"),
            run: new_id(),
            acknowledged: AtomicU64::new(0),
            repeats: AtomicU64::new(0),
        });
        let (failing, sending) = (CancellationToken::new(), CancellationToken::new());
        let (tasks, faults) = (TaskTracker::new(), Arc::new(AtomicU64::new(0)));
        // The topic is there, and so is the group.
        until("a webhook is taken", || async {
            let answer = mesh.post(&new_id(), b"{}").await;
            answer.status.is_success().then_some(()).ok_or(answer)
        })
        .await;
        mesh.outbox_is_empty(PATIENCE).await;
        self.fault.begin(&mesh, self.time, &tasks, &failing, &faults);
        let keys = self.rate.div_ceil(RATE_OF_KEY).max(1);
        let each = Duration::from_secs(1) * keys / self.rate;
        let senders: Vec<_> = (0..keys as usize)
            .map(|key| {
                // Evenly over the time between two of one key.
                let first = each * u32::try_from(key).unwrap_or_default() / keys;
                let mut due = tokio::time::interval_at(tokio::time::Instant::now() + first, each);
                due.set_missed_tick_behavior(MissedTickBehavior::Burst);
                tokio::spawn(send(sender.clone(), key, due, sending.clone()))
            })
            .collect();

        let begun = Instant::now();
        while begun.elapsed() < self.time {
            tokio::time::sleep(TELL.min(self.time.saturating_sub(begun.elapsed()))).await;
            println!(
                "{:>5.0?}: {} acknowledged, {} faults, {} repeated",
                begun.elapsed(),
                sender.acknowledged.load(Ordering::Relaxed),
                faults.load(Ordering::Relaxed),
                sender.repeats.load(Ordering::Relaxed),
            );
        }
        failing.cancel();
        tasks.close();
        tasks.wait().await;
        let ended = Instant::now();
        sending.cancel();
        let mut ledger = Vec::new();
        for sender in senders {
            let sent = tokio::time::timeout(PATIENCE, sender).await;
            let sent = sent.expect("everything is acknowledged once nothing is killed any more");
            ledger.extend(sent.expect("a sender doesn't panic"));
        }
        mesh.outbox_is_empty(CATCH_UP).await;
        let caught_up = ended.elapsed();
        mesh.healthy().await;
        let found = Found::of(&mesh, &ledger, &sender.run).await;
        let mesh = Arc::into_inner(mesh).expect("the tasks have ended");
        mesh.stop().await;
        let share = |of: fn(&Sent) -> Duration| {
            let mut all: Vec<Duration> = ledger.iter().map(of).collect();
            all.sort_unstable();
            [0.5, 0.99, 1.0].map(|share| percentile(&all, share))
        };
        Verdict {
            acknowledged: ledger.len(),
            faults: faults.load(Ordering::Relaxed),
            caught_up,
            repeats: sender.repeats.load(Ordering::Relaxed),
            raw_duplicates: found.raw_duplicates,
            answered: share(|sent| sent.answered),
            with_repeats: share(|sent| sent.with_repeats),
            lost: found.lost,
            doubled: found.doubled,
            disordered: found.disordered,
        }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("there are ports");
    listener.local_addr().expect("it is bound").port()
}

/// Sends the webhooks of one key, one after the other: the next one when the
/// last one is acknowledged.
async fn send(
    sender: Arc<Sender>,
    key: usize,
    mut due: Interval,
    stop: CancellationToken,
) -> Vec<Sent> {
    let mut ledger = Vec::new();
    for number in 0.. {
        tokio::select! {
            _ = due.tick() => {}
            () = stop.cancelled() => break,
        }
        let delivery = format!("{}-{key}-{number}", sender.run);
        let begun = Instant::now();
        let answered = sender.acknowledge(key, number, &delivery).await;
        sender.acknowledged.fetch_add(1, Ordering::Relaxed);
        ledger.push(Sent { key, number, delivery, answered, with_repeats: begun.elapsed() });
    }
    ledger
}

impl Sender {
    /// Sends one webhook until it is acknowledged; answers how long the request
    /// took that was.
    async fn acknowledge(&self, key: usize, number: u64, delivery: &str) -> Duration {
        let body = json!({ "key": key, "number": number }).to_string();
        loop {
            let begun = Instant::now();
            let request = self
                .http
                .post(&self.url)
                .header("content-type", "application/json")
                .header("x-github-event", "push")
                .header("x-github-delivery", delivery)
                .header("x-hub-signature-256", signature(body.as_bytes()))
                .header("x-correlation-id", format!("{}-{key}", self.run))
                .body(body.clone());
            match request.send().await {
                Ok(answer) if answer.status().is_success() => return begun.elapsed(),
                _ => self.repeats.fetch_add(1, Ordering::Relaxed),
            };
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// What a run has left behind.
#[derive(Default)]
struct Found {
    raw_duplicates: usize,
    lost: usize,
    doubled: usize,
    disordered: usize,
}

impl Found {
    async fn of(mesh: &Mesh, ledger: &[Sent], run: &str) -> Self {
        let sent: HashMap<&str, (usize, u64)> =
            ledger.iter().map(|sent| (&*sent.delivery, (sent.key, sent.number))).collect();
        let mut found = Self::default();

        // The topic: each delivery's events, in the order in which they first came.
        let mut events: HashMap<String, (usize, u64)> = HashMap::new();
        let mut of_delivery: HashMap<(usize, u64), HashSet<String>> = HashMap::new();
        let mut order = Order::default();
        let broker = broker::broker(&mesh.config()).await.expect("the broker's settings hold");
        let mut topic = Scan::of(broker.as_ref(), TOPIC).await.expect("the topic is there");
        while let Some(read) = topic.next().await.expect("the broker is there") {
            for event in read.into_iter().filter_map(|delivery| delivery.event.ok()) {
                let attributes = event.attributes;
                let delivery = attributes.extensions.get("deliveryid").map(String::as_str);
                let Some(delivery) = delivery.filter(|id| id.starts_with(run)) else { continue };
                let Some(place) = sent.get(delivery) else { continue };
                of_delivery.entry(*place).or_default().insert(attributes.id.clone());
                match events.insert(attributes.id, *place) {
                    Some(_) => found.raw_duplicates += 1,
                    None => found.disordered += order.next(*place),
                }
            }
        }
        found.lost += sent.len() - of_delivery.len();
        found.doubled += of_delivery.values().filter(|ids| ids.len() > 1).count();

        // The trail: an entry an event.
        let mut entries = vec![];
        let mut since = Instant::now();
        while since.elapsed() < PATIENCE {
            let now = mesh.backends.trail(run).await.expect("the trail can be read");
            if now.len() > entries.len() {
                since = Instant::now();
            }
            entries = now;
            let there: HashSet<&String> = entries.iter().collect();
            // A while longer, for what would be one too many.
            if since.elapsed() > SETTLED && events.keys().all(|id| there.contains(id)) {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let mut order = Order::default();
        let mut seen = HashSet::new();
        for id in &entries {
            let Some(place) = events.get(id) else {
                // Of this run, but in no topic: it came from nowhere.
                found.doubled += 1;
                continue;
            };
            match seen.insert(id) {
                true => found.disordered += order.next(*place),
                false => found.doubled += 1,
            }
        }
        found.lost += events.len() - seen.len();
        found
    }
}

/// Which number of each key comes next.
#[derive(Default)]
struct Order(HashMap<usize, u64>);

impl Order {
    /// 1 where a later one of its key has come already, else 0.
    fn next(&mut self, (key, number): (usize, u64)) -> usize {
        let expected = self.0.entry(key).or_default();
        let late = number < *expected;
        *expected = (*expected).max(number + 1);
        late.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_after_a_later_one_is_out_of_order() {
        let mut order = Order::default();
        let of = [(1, 0), (2, 0), (1, 1), (1, 3), (1, 2), (2, 1)].map(|place| order.next(place));
        assert_eq!(of, [0, 0, 0, 0, 1, 0]);
    }
}
