//! `omni events trace`: the story of one correlation, over all topics.

use std::collections::{HashMap, HashSet};

use anyhow::ensure;
use mesh::events::{
    Event,
    broker::{self, Delivery, Scan},
};

use super::show;
use crate::{
    args::{Common, EventsTrace},
    config, output,
};

/// How many events a story has at most.
const MAX_EVENTS: usize = 10_000;

/// One event of the story.
struct Chapter {
    delivery: Delivery,
    event: Event,
}

/// Prints the story as a tree: each event under the one that caused it.
pub(super) async fn run(common: &Common, args: &EventsTrace) -> anyhow::Result<()> {
    let config = config::load(common, &[])?;
    let broker = broker::broker(&config).await?;
    let (mut chapters, mut seen) = (Vec::new(), HashSet::new());
    for topic in broker.topics().await? {
        let mut scan = Scan::of(broker.as_ref(), &topic.name).await?;
        while let Some(deliveries) = scan.next().await? {
            for delivery in deliveries {
                let Ok(event) = delivery.event.clone() else { continue };
                let attributes = &event.attributes;
                let once = (topic.name.clone(), attributes.source.clone(), attributes.id.clone());
                if attributes.correlationid == args.correlation_id && seen.insert(once) {
                    chapters.push(Chapter { delivery, event });
                }
            }
            ensure!(chapters.len() <= MAX_EVENTS, "it has more than {MAX_EVENTS} events");
        }
    }
    ensure!(!chapters.is_empty(), "no event has the correlation id `{}`", args.correlation_id);
    chapters.sort_by_key(|chapter| chapter.event.attributes.time);
    if args.json {
        let all: Vec<_> = chapters.iter().map(|c| show::cloud_event(&c.delivery)).collect();
        return output::json(&all);
    }
    for (depth, chapter) in tree(&chapters) {
        let attributes = &chapter.event.attributes;
        let time = attributes.time.format("%Y-%m-%d %H:%M:%S%.3f");
        let branch = if depth == 0 { String::new() } else { "   ".repeat(depth - 1) + "└─ " };
        output::line(&format!(
            "{time}  {branch}{} {} {} id {}",
            chapter.delivery.topic,
            show::printable(&attributes.source),
            show::printable(&attributes.kind),
            show::printable(&attributes.id),
        ))?;
    }
    Ok(())
}

/// The chapters in the order of the tree, with their depth: an event stands under
/// the one whose id is its causation id, and those under one in order of time.
fn tree(chapters: &[Chapter]) -> Vec<(usize, &Chapter)> {
    let ids: HashSet<&str> = chapters.iter().map(|c| &*c.event.attributes.id).collect();
    let mut under: HashMap<&str, Vec<&Chapter>> = HashMap::new();
    for chapter in chapters {
        let attributes = &chapter.event.attributes;
        let cause = Some(&*attributes.causationid);
        let cause = cause.filter(|cause| ids.contains(cause) && *cause != attributes.id);
        under.entry(cause.unwrap_or_default()).or_default().push(chapter);
    }
    let (mut tree, mut told) = (Vec::new(), HashSet::new());
    let mut next: Vec<(usize, &Chapter)> = Vec::new();
    let beginnings = under.get("").into_iter().flatten().copied();
    // Those that cause each other in a circle have no beginning among them.
    for beginning in beginnings.chain(chapters) {
        next.push((0, beginning));
        while let Some((depth, chapter)) = next.pop() {
            if !told.insert(std::ptr::from_ref(chapter)) {
                continue;
            }
            tree.push((depth, chapter));
            let below = under.get(&*chapter.event.attributes.id).into_iter().flatten();
            next.extend(below.rev().map(|chapter| (depth + 1, *chapter)));
        }
    }
    tree
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chapter(id: &str, cause: &str) -> Chapter {
        let mut event =
            Event::typed("/s", "c", &mesh::messages::audit::v1::AuditEvent::default()).unwrap();
        (event.attributes.id, event.attributes.causationid) = (id.into(), cause.into());
        let delivery =
            Delivery { topic: "t".into(), partition: 0, offset: 0, event: Ok(event.clone()) };
        Chapter { delivery, event }
    }

    #[test]
    fn each_event_stands_under_its_cause_once() {
        let of =
            [("a", ""), ("b", "a"), ("c", "x"), ("d", "b"), ("e", "a"), ("f", "g"), ("g", "f")];
        let chapters = of.map(|(id, cause)| chapter(id, cause));
        let told = tree(&chapters);
        let told: Vec<_> = told.iter().map(|(d, c)| (*d, &*c.event.attributes.id)).collect();
        let expected = [(0, "a"), (1, "b"), (2, "d"), (1, "e"), (0, "c"), (0, "f"), (1, "g")];
        assert_eq!(told, expected);
    }
}
