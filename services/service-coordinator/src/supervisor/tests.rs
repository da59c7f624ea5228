//! The supervisor with units that only say that they run, in time that passes by itself.

use std::{collections::HashMap, time::Duration};

use mesh::service::Phase;
use tokio::{sync::Notify, task::JoinHandle};

use super::*;
use crate::plan::Kind;

/// How long anything here may take, in time that passes by itself.
const DEADLINE: Duration = Duration::from_secs(600);

/// Starts what isn't there, as it is told.
#[derive(Default)]
struct Fake {
    told: Mutex<HashMap<String, Told>>,
    /// What happened, in order.
    log: Mutex<Vec<String>>,
    living: Mutex<BTreeMap<(String, u32), Arc<Notify>>>,
}

/// What becomes of the starts of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Fails,
    Hangs,
    /// It is healthy, and dies at once.
    Dies,
    Panics,
    Never,
}

struct Alive {
    fake: Arc<Fake>,
    key: (String, u32),
    killed: Arc<Notify>,
    dies: bool,
}

impl Fake {
    fn tell(&self, unit: &str, told: Option<Told>) {
        let mut all = self.told.lock().unwrap();
        match told {
            Some(told) => drop(all.insert(unit.to_owned(), told)),
            None => drop(all.remove(unit)),
        }
    }

    fn log(&self, line: String) {
        self.log.lock().unwrap().push(line);
    }

    fn said(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    fn kill(&self, unit: &str, number: u32) {
        self.living.lock().unwrap()[&(unit.to_owned(), number)].notify_one();
    }

    fn living(&self, unit: &str) -> Vec<u32> {
        let living = self.living.lock().unwrap();
        living.keys().filter(|(name, _)| name == unit).map(|(_, number)| *number).collect()
    }
}

/// The runner is a handle of it.
struct Hand(Arc<Fake>);

#[async_trait]
impl Runner for Hand {
    async fn start(&self, unit: &Unit, number: u32) -> Result<Box<dyn Running>, Failure> {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let told = self.0.told.lock().unwrap().get(&unit.name).copied();
        match told {
            Some(Told::Fails) => return Err(Failure::Passing("it won't".to_owned())),
            Some(Told::Never) => {
                return Err(Failure::Final(Error::setting("port", "1", "is taken")));
            }
            Some(Told::Hangs) => std::future::pending().await,
            Some(Told::Panics) => panic!("a defect"),
            Some(Told::Dies) | None => {}
        }
        let key = (unit.name.clone(), number);
        let killed = Arc::new(Notify::new());
        self.0.living.lock().unwrap().insert(key.clone(), killed.clone());
        self.0.log(format!("+{}", unit.name));
        let dies = told == Some(Told::Dies);
        Ok(Box::new(Alive { fake: self.0.clone(), key, killed, dies }))
    }

    fn is_many(&self, _: &Unit) -> bool {
        true
    }
}

#[async_trait]
impl Running for Alive {
    fn note(&self) -> String {
        format!("{}:{}", self.key.0, self.key.1)
    }

    async fn ended(&mut self) -> String {
        if !self.dies {
            self.killed.notified().await;
        }
        "it was killed".to_owned()
    }

    async fn drain(self: Box<Self>) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        self.fake.log(format!("-{}", self.key.0));
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.fake.living.lock().unwrap().remove(&self.key);
    }
}

/// A supervisor of fakes.
struct Site {
    fake: Arc<Fake>,
    control: Control,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

impl Site {
    fn start(units: Vec<Unit>, told: &[(&str, Told)]) -> Self {
        let fake = Arc::new(Fake::default());
        for (unit, what) in told {
            fake.tell(unit, Some(*what));
        }
        let plan = Arc::new(Plan::of(units).unwrap());
        let supervisor = Supervisor::new(plan);
        let (control, stop) = (supervisor.control(), CancellationToken::new());
        let task = tokio::spawn(supervisor.run(Arc::new(Hand(fake.clone())), stop.clone()));
        Self { fake, control, stop, task }
    }

    async fn until(&self, what: &str, there: impl Fn(&Statuses) -> bool) {
        let mut statuses = self.control.statuses();
        let waited = tokio::time::timeout(DEADLINE, statuses.wait_for(there)).await.is_ok();
        assert!(waited, "never {what}: {:#?}", self.control.statuses().borrow());
    }

    async fn is(&self, unit: &str, state: State) -> Status {
        self.until(&format!("{unit} {state:?}"), |all| all[unit].state == state).await;
        self.control.statuses().borrow()[unit].clone()
    }

    async fn stop(self) -> Vec<String> {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.task).await.unwrap().unwrap().unwrap();
        assert!(self.fake.living.lock().unwrap().is_empty());
        self.fake.said()
    }
}

fn unit(name: &str, requires: &[&str], wants: &[&str]) -> Unit {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Unit {
        name: name.to_owned(),
        kind: Kind::Service,
        phase: Phase::Services,
        requires: names(requires),
        wants: names(wants),
        timeout: Duration::from_secs(5),
    }
}

/// 200 units, each of which needs up to three others that a seed picks.
fn many(seed: u64) -> Vec<Unit> {
    let mut random = seed;
    let mut next = || {
        // Knuth's multiplier for a linear congruential generator (MMIX).
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(random >> 33).unwrap()
    };
    (0..200)
        .map(|n| {
            let mut unit = unit(&format!("u{n:03}"), &[], &[]);
            for _ in 0..next() % 4 {
                if n > 0 {
                    let needed = format!("u{:03}", next() % n);
                    match next() % 3 {
                        0 => unit.wants.insert(needed),
                        _ => unit.requires.insert(needed),
                    };
                }
            }
            unit
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn two_hundred_units_start_in_order_and_go_in_reverse() {
    for seed in 0..5 {
        let units = many(seed);
        let site = Site::start(units.clone(), &[]);
        let ready = |all: &Statuses| all.values().all(|status| status.state == State::Ready);
        site.until("all are ready", ready).await;
        let said = site.stop().await;
        assert_eq!(said.len(), 400);
        let place = |line: String| said.iter().position(|said| *said == line).unwrap();
        let plan = Plan::of(units.clone()).unwrap();
        for levels in plan.levels().windows(2) {
            let begun = |level: &[String]| level.iter().map(|u| place(format!("+{u}"))).collect();
            let [before, after]: [Vec<usize>; 2] = [begun(&levels[0]), begun(&levels[1])];
            assert!(before.iter().max() < after.iter().min(), "a level at a time");
        }

        for unit in &units {
            for needed in unit.requires.iter().chain(&unit.wants) {
                assert!(place(format!("+{needed}")) < place(format!("+{}", unit.name)));
                assert!(place(format!("-{needed}")) > place(format!("-{}", unit.name)));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_requires_what_fails_waits_and_says_so_and_others_go_on() {
    let units = vec![
        unit("base", &[], &[]),
        unit("top", &["base"], &[]),
        unit("higher", &["top"], &[]),
        unit("other", &[], &[]),
        unit("last", &["other"], &["higher"]),
    ];
    let site = Site::start(units, &[("base", Told::Fails)]);
    let last = site.is("last", State::Degraded).await;
    assert_eq!(last.reason, "without higher");
    site.is("base", State::Failed).await;
    let top = site.is("top", State::Waiting).await;
    assert_eq!(top.reason, "waits for base (it won't)");
    let refused = site.control.order("top", Order::Restart).await.unwrap_err();
    assert!(refused.to_string().contains("it hasn't been started yet"), "{refused}");

    site.fake.tell("base", None);
    for unit in ["base", "top", "higher", "last"] {
        site.is(unit, State::Ready).await;
    }
    assert_eq!(site.stop().await.len(), 10);
}

#[tokio::test(start_paused = true)]
async fn what_hangs_is_given_up_and_tried_again() {
    let units = vec![unit("base", &[], &[]), unit("next", &[], &["base"])];
    let site = Site::start(units, &[("base", Told::Hangs)]);
    let base = site.is("base", State::Failed).await;
    assert_eq!(base.reason, "it isn't healthy after 5s");
    site.is("next", State::Degraded).await;
    site.fake.tell("base", None);
    site.is("base", State::Ready).await;
    site.is("next", State::Ready).await;
    site.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_dies_is_started_again_and_those_who_need_it_say_so() {
    let units = vec![unit("base", &[], &[]), unit("next", &["base"], &[])];
    let site = Site::start(units, &[]);
    site.is("next", State::Ready).await;
    let mut transitions = site.control.transitions();
    site.fake.kill("base", 0);
    let next = site.is("next", State::Degraded).await;
    assert_eq!(next.reason, "without base");
    site.is("next", State::Ready).await;
    let base = site.control.statuses().borrow()["base"].clone();
    assert_eq!((base.restarts, base.healthy, base.reason.as_str()), (1, 1, ""));
    let mut told = Vec::new();
    while let Ok(transition) = transitions.try_recv() {
        told.push(format!("{} {:?} {}", transition.unit, transition.to, transition.reason));
    }
    let expected =
        ["base Failed it was killed", "next Degraded without base", "base Ready ", "next Ready "];
    assert_eq!(told, expected);
    site.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_is_told_and_takes_nobody_down() {
    let units = vec![unit("loops", &[], &[]), unit("works", &[], &["loops"])];
    let site = Site::start(units, &[("loops", Told::Dies)]);
    let loops = site.is("loops", State::CrashLooping).await;
    assert_eq!(loops.reason, "5 failures in a row: it was killed");
    assert!(site.control.statuses().borrow()["works"].state.is_healthy());
    let begun = tokio::time::Instant::now();
    let more = |all: &Statuses| all["loops"].restarts >= loops.restarts + 3;
    site.until("it is tried again", more).await;
    // Three pauses, of 1.6, 3.2 and 6.4 s at most and half of that at least.
    let (least, most) = (Duration::from_secs(5), Duration::from_secs(12));
    assert!((least..most).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    // It has to hold for a while before its failures are forgotten.
    site.fake.tell("loops", None);
    site.is("loops", State::Ready).await;
    site.is("works", State::Ready).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    site.fake.kill("loops", 0);
    site.is("loops", State::Failed).await;
    site.is("loops", State::Ready).await;
    site.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_rolling_restart_replaces_each_by_one_that_is_healthy() {
    let site = Site::start(vec![unit("a", &[], &[])], &[]);
    site.is("a", State::Ready).await;
    site.control.order("a", Order::Scale(3)).await.unwrap();
    assert_eq!(site.fake.living("a"), [0, 1, 2]);

    let mut transitions = site.control.transitions();
    site.control.order("a", Order::Restart).await.unwrap();
    // The first one is replaced twice: what it alone has comes back to it.
    let replaced = ["+a", "-a"].repeat(4);
    assert_eq!(site.fake.said(), [vec!["+a"; 3], replaced].concat());
    assert_eq!(site.fake.living("a"), [0, 1, 3]);
    assert!(transitions.try_recv().is_err(), "it was ready all the time");

    // What can't be replaced stays.
    site.fake.tell("a", Some(Told::Fails));
    let refused = site.control.order("a", Order::Restart).await.unwrap_err();
    assert_eq!(refused, Refused::Failed { unit: "a".into(), why: "it won't".into() });
    assert_eq!(site.fake.living("a").len(), 3);
    site.is("a", State::Ready).await;

    site.control.order("a", Order::Scale(1)).await.unwrap();
    assert_eq!(site.fake.living("a").len(), 1);
    site.control.order("a", Order::Drain).await.unwrap();
    assert_eq!(site.is("a", State::Stopped).await.reason, "it was drained");
    site.fake.tell("a", None);
    site.control.order("a", Order::Restart).await.unwrap();
    site.is("a", State::Ready).await;
    site.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_done_is_refused() {
    let site = Site::start(vec![unit("a", &[], &[])], &[]);
    let order = |unit: &'static str, order| site.control.order(unit, order);
    assert_eq!(order("ghost", Order::Drain).await, Err(Refused::Unknown("ghost".into())));
    for count in [0, MAX_INSTANCES + 1] {
        assert_eq!(order("a", Order::Scale(count)).await, Err(Refused::Count));
    }
    site.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_will_never_start_ends_everything() {
    let units = vec![unit("a", &[], &[]), unit("b", &["a"], &[])];
    let site = Site::start(units, &[("b", Told::Never)]);
    let ended = tokio::time::timeout(DEADLINE, site.task).await.unwrap().unwrap();
    assert!(ended.unwrap_err().to_string().contains("is taken"));
    assert_eq!(site.fake.said(), ["+a", "-a"]);
}

#[tokio::test(start_paused = true)]
async fn what_worked_once_ends_nothing() {
    let site = Site::start(vec![unit("a", &[], &[])], &[]);
    site.is("a", State::Ready).await;
    site.fake.tell("a", Some(Told::Never));
    site.fake.kill("a", 0);
    let taken = |all: &Statuses| all["a"].reason.contains("is taken");
    site.until("its port is taken", taken).await;
    site.fake.tell("a", None);
    site.is("a", State::Ready).await;
    site.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_starting_it_is_a_failure_as_any_other() {
    let site = Site::start(vec![unit("a", &[], &[])], &[("a", Told::Panics)]);
    assert_eq!(site.is("a", State::Failed).await.reason, "its task panicked");
    site.fake.tell("a", None);
    site.is("a", State::Ready).await;
    assert_eq!(site.stop().await, ["+a", "-a"]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_what_is_half_way() {
    let units = vec![unit("a", &[], &[]), unit("b", &["a"], &[]), unit("c", &["b"], &[])];
    let site = Site::start(units, &[("b", Told::Hangs)]);
    site.is("b", State::Starting).await;
    assert_eq!(site.stop().await, ["+a", "-a"]);
}
