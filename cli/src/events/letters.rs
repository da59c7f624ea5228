//! The dead letters that are still to be dealt with.

use std::collections::{BTreeMap, HashSet};

use anyhow::ensure;
use mesh::events::{
    Attributes, DEAD_LETTERS, Event,
    broker::{Broker, Delivery, Record, Scan},
};

use crate::args::DlqChoice;

/// The attribute by which a later event of a topic of dead letters says that the
/// one at this partition and offset is dealt with, and the one that says how. No
/// broker can take a single event out of a topic.
const SETTLES: &str = "dlqsettles";
const HOW: &str = "dlqhow";
/// Where such events come from.
const SOURCE: &str = "/operators";
const KIND: &str = "settled";

/// One dead letter.
pub(super) struct Letter {
    /// The topic it was given up on, by the name of the letters' own: what a letter
    /// says of itself may be anybody's.
    pub(super) topic: String,
    pub(super) delivery: Delivery,
    pub(super) event: Event,
}

/// How a letter was dealt with.
#[derive(Clone, Copy, Debug)]
pub(super) enum How {
    Replayed,
    Discarded,
}

impl Letter {
    /// What the letter says of itself: `what` is reason, topic, group, attempts,
    /// time, partition or offset.
    pub(super) fn says(&self, what: &str) -> &str {
        self.event.attributes.extensions.get(&format!("dlq{what}")).map_or("", String::as_str)
    }

    /// The event as it was before it was given up on.
    pub(super) fn original(&self) -> Event {
        let mut event = self.event.clone();
        event.attributes.extensions.retain(|name, _| !name.starts_with("dlq"));
        event
    }

    /// The record that takes it off the list.
    pub(super) fn settled(&self, how: How) -> Record {
        let how = match how {
            How::Replayed => "replayed",
            How::Discarded => "discarded",
        };
        let letter = &self.event.attributes;
        let (partition, offset) = self.place();
        let extensions = [(SETTLES, format!("{partition}/{offset}")), (HOW, how.to_owned())];
        let attributes = Attributes {
            id: uuid::Uuid::now_v7().to_string(),
            source: SOURCE.to_owned(),
            kind: KIND.to_owned(),
            subject: letter.id.clone(),
            time: chrono::Utc::now(),
            datacontenttype: "application/json".to_owned(),
            dataschema: String::new(),
            correlationid: letter.correlationid.clone(),
            causationid: letter.id.clone(),
            traceparent: String::new(),
            extensions: extensions.map(|(name, value)| (name.to_owned(), value)).into(),
        };
        let event = Event { attributes, data: "{}".into() };
        Record { topic: self.delivery.topic.clone(), event }
    }

    /// Its partition and offset.
    fn place(&self) -> (i32, i64) {
        (self.delivery.partition, self.delivery.offset)
    }
}

/// A place as [`SETTLES`] has it.
fn parse(place: &str) -> Option<(i32, i64)> {
    let (partition, offset) = place.split_once('/')?;
    Some((partition.parse().ok()?, offset.parse().ok()?))
}

/// All letters of `topic`, or of every topic, that aren't dealt with.
pub(super) async fn letters(
    broker: &dyn Broker,
    topic: Option<&str>,
) -> anyhow::Result<Vec<Letter>> {
    let mut all = Vec::new();
    for status in broker.topics().await? {
        let Some(of) = status.name.strip_prefix(DEAD_LETTERS) else { continue };
        if topic.is_some_and(|topic| topic != of) {
            continue;
        }
        let mut letters: BTreeMap<(i32, i64), Letter> = BTreeMap::new();
        // Of those that come later: a topic was given more partitions.
        let mut settled = HashSet::new();
        let mut scan = Scan::of(broker, &status.name).await?;
        while let Some(deliveries) = scan.next().await? {
            for delivery in deliveries {
                let Ok(event) = delivery.event.clone() else { continue };
                let attributes = &event.attributes;
                let is_ours = attributes.source == SOURCE && attributes.kind == KIND;
                let settles = attributes.extensions.get(SETTLES).filter(|_| is_ours);
                match settles.and_then(|place| parse(place)) {
                    Some(place) => {
                        if letters.remove(&place).is_none() {
                            settled.insert(place);
                        }
                    }
                    None => {
                        let letter = Letter { topic: of.to_owned(), delivery, event };
                        if !settled.contains(&letter.place()) {
                            letters.insert(letter.place(), letter);
                        }
                    }
                }
            }
        }
        all.extend(letters.into_values());
    }
    Ok(all)
}

impl DlqChoice {
    /// The letters that are meant.
    pub(super) async fn letters(&self, broker: &dyn Broker) -> anyhow::Result<Vec<Letter>> {
        let mut found = letters(broker, self.topic.as_deref()).await?;
        if !self.all {
            for id in &self.ids {
                let known = found.iter().any(|letter| letter.event.attributes.id == *id);
                ensure!(known, "there is no dead letter `{id}`: see `omni events dlq list`");
            }
            found.retain(|letter| self.ids.contains(&letter.event.attributes.id));
        }
        Ok(found)
    }
}
