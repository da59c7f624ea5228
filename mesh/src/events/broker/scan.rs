//! A topic from its first event to the last it has at the beginning.

use std::{collections::BTreeMap, time::Duration};

use super::{Broker, Consumer, Delivery, From};
use crate::Error;

/// How many deliveries are read at once.
const BATCH: usize = 500;
/// How long the broker may take for these.
const LIMIT: Duration = Duration::from_secs(15);

/// Reads what a topic has. It ends, as opposed to [`Broker::tail`].
pub struct Scan {
    consumer: Option<Box<dyn Consumer>>,
    /// The offset behind the last event of each partition that isn't read yet.
    ends: BTreeMap<i32, i64>,
}

impl Scan {
    /// Begins at the first event of `topic`.
    ///
    /// # Errors
    /// When the topic isn't there or the broker can't be reached.
    pub async fn of(broker: &dyn Broker, topic: &str) -> Result<Self, Error> {
        let bounds = broker.bounds(topic).await?;
        let ends = bounds.into_iter().filter(|(_, (first, next))| first < next);
        let ends: BTreeMap<_, _> = ends.map(|(partition, (_, next))| (partition, next)).collect();
        let consumer = match ends.is_empty() {
            true => None,
            false => Some(broker.tail(topic, From::Beginning).await?),
        };
        Ok(Self { consumer, ends })
    }

    /// The next deliveries, those of each partition in order; `None` at the end.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn next(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        let Some(consumer) = self.consumer.as_mut().filter(|_| !self.ends.is_empty()) else {
            return Ok(None);
        };
        let next = tokio::time::timeout(LIMIT, consumer.next(BATCH));
        let mut deliveries = next
            .await
            .map_err(|_| Error::Broker(format!("nothing came for {LIMIT:?}; is it there?")))??;
        if deliveries.is_empty() {
            self.ends.clear();
            return Ok(None);
        }
        deliveries.retain(|delivery| {
            let Some(end) = self.ends.get(&delivery.partition).copied() else { return false };
            if delivery.offset + 1 >= end {
                self.ends.remove(&delivery.partition);
            }
            delivery.offset < end
        });
        Ok(Some(deliveries))
    }
}
