//! How far a group is behind, as metrics, and whether it has stalled.

use std::{collections::HashMap, sync::Arc, time::Duration};

use opentelemetry::metrics::{Counter, Gauge};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::broker::{Broker, GroupStatus};
use crate::telemetry::label;

/// How often the broker is asked.
const INTERVAL: Duration = Duration::from_secs(15);
/// How long a group may stand still before events that wait for it.
const STALLED_AFTER: Duration = Duration::from_secs(60);

/// Counts `count` dead letters of `group`, from `topic`.
pub(super) fn letters(counter: &Counter<u64>, service: &str, group: &str, topic: &str, count: u64) {
    let labels = [("service", service), ("group", group), ("topic", topic)];
    counter.add(count, &labels.map(|(key, value)| label(key, value.to_owned())));
}

/// Reports the lag of `group` in the topics that match `pattern`, until `stop`.
pub(super) async fn report(
    service: Arc<str>,
    group: String,
    pattern: String,
    broker: Arc<dyn Broker>,
    dead_letters: Counter<u64>,
    stop: CancellationToken,
) {
    let meter = opentelemetry::global::meter("omnibridge");
    let gauge = |name, about| meter.i64_gauge(name).with_description(about).build();
    let lag = gauge("omni.consumer.lag", "Events that a group has yet to handle");
    let stalled =
        gauge("omni.consumer.stalled", "1 while a group stands still although events wait for it");
    let mut places = Places::default();
    let mut due = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            _ = due.tick() => {}
            () = stop.cancelled() => return,
        }
        let asked = tokio::select! {
            asked = broker.group(&group, &pattern) => asked,
            () = stop.cancelled() => return,
        };
        let statuses = match asked {
            Ok(statuses) => statuses,
            Err(why) => {
                tracing::debug!(%service, group, %why, "its lag isn't known");
                // While the broker is away nothing could move.
                places = Places::default();
                continue;
            }
        };
        for status in &statuses {
            let (stands, newly) = places.stands(status, Instant::now());
            if newly {
                tracing::warn!(
                    %service, group, topic = status.topic, partition = status.partition,
                    lag = status.lag, position = status.position, "consuming has stalled",
                );
            }
            let record = |gauge: &Gauge<i64>, value| {
                let labels = [
                    label("service", service.to_string()),
                    label("group", group.clone()),
                    label("topic", status.topic.clone()),
                    label("partition", i64::from(status.partition)),
                ];
                gauge.record(value, &labels);
            };
            // From none on: of a counter that begins at 1 nobody sees that it grew.
            letters(&dead_letters, &service, &group, &status.topic, 0);
            record(&lag, status.lag);
            record(&stalled, stands.into());
        }
    }
}

/// Where a group was in each partition, and since when.
#[derive(Default)]
struct Places(HashMap<(String, i32), Place>);

struct Place {
    position: i64,
    since: Instant,
    stands: bool,
}

impl Places {
    /// Whether the group stands still in a partition, and whether that is new.
    fn stands(&mut self, status: &GroupStatus, now: Instant) -> (bool, bool) {
        let GroupStatus { topic, partition, position, lag, .. } = status;
        let new = Place { position: *position, since: now, stands: false };
        let place = self.0.entry((topic.clone(), *partition)).or_insert(new);
        if place.position != *position || *lag == 0 {
            *place = Place { position: *position, since: now, stands: false };
        }
        let stood = place.stands;
        place.stands = now - place.since >= STALLED_AFTER;
        (place.stands, place.stands && !stood)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_stalled_when_it_stands_still_before_what_waits() {
        let (mut places, start) = (Places::default(), Instant::now());
        let mut at = |seconds, position, lag| {
            let status =
                GroupStatus { group: "g".into(), topic: "t".into(), partition: 0, position, lag };
            places.stands(&status, start + Duration::from_secs(seconds))
        };
        assert_eq!(at(0, 5, 0), (false, false));
        assert_eq!(at(100, 5, 0), (false, false), "nothing waits");
        assert_eq!(at(110, 5, 3), (false, false));
        assert_eq!(at(160, 5, 9), (true, true), "since 100");
        assert_eq!(at(175, 5, 9), (true, false), "said once");
        assert_eq!(at(190, 6, 8), (false, false), "it moves");
        assert_eq!(at(249, 6, 8), (false, false));
        assert_eq!(at(250, 6, 8), (true, true));
    }
}
