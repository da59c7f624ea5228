//! Events of other versions than a consumer reads, converted before it sees them.

use std::{borrow::Cow, sync::Arc};

use async_trait::async_trait;
use convert::Mappings;
use prost_reflect::{DeserializeOptions, DynamicMessage};
use sea_orm::DatabaseTransaction;

use super::{Event, Handler};
use crate::Error;

/// The form of typed events.
const JSON: &str = "application/json";

/// A handler that gets its events in the versions it reads. An event that can't be
/// converted stays what it was, and goes to the dead letters as such.
pub(crate) struct Versioned {
    inner: Arc<dyn Handler>,
    mappings: Arc<Mappings>,
}

impl Versioned {
    /// `inner`, with `mappings` if it reads any versions.
    pub(crate) fn wrap(inner: Arc<dyn Handler>, mappings: &Arc<Mappings>) -> Arc<dyn Handler> {
        match inner.reads() {
            [] => inner,
            _ => Arc::new(Self { inner, mappings: mappings.clone() }),
        }
    }

    /// `event` in a version that is read, if there is a way to it; else as it is.
    fn convert<'e>(&self, event: &'e Event) -> Result<Cow<'e, Event>, Error> {
        let (found, reads) = (event.attributes.dataschema.as_str(), self.inner.reads());
        if reads.contains(&found) {
            return Ok(Cow::Borrowed(event));
        }
        let is_json = event.attributes.datacontenttype == JSON;
        let transform = self.mappings.of_message(found, reads).filter(|_| is_json);
        let Some(transform) = transform else { return Ok(Cow::Borrowed(event)) };
        let failed = |why: &dyn std::fmt::Display| Error::Conversion {
            found: found.to_owned(),
            expected: transform.target().full_name().to_owned(),
            cause: why.to_string(),
        };
        let mut json = serde_json::Deserializer::from_slice(&event.data);
        // Who wrote it may know more fields.
        let options = DeserializeOptions::new().deny_unknown_fields(false);
        let source = transform.source().clone();
        let message = DynamicMessage::deserialize_with_options(source, &mut json, &options);
        let message = message.and_then(|message| json.end().map(|()| message));
        let message = message.map_err(|why| failed(&why))?;
        let message = transform.message(message).map_err(|why| failed(&why))?;
        let data = serde_json::to_vec(&message).map_err(|why| failed(&why))?;
        let mut event = Event { attributes: event.attributes.clone(), data: data.into() };
        let name = transform.target().full_name();
        if event.attributes.kind == found {
            name.clone_into(&mut event.attributes.kind);
        }
        name.clone_into(&mut event.attributes.dataschema);
        Ok(Cow::Owned(event))
    }
}

#[async_trait]
impl Handler for Versioned {
    async fn handle(
        &self,
        tx: &DatabaseTransaction,
        topic: &str,
        event: &Event,
    ) -> Result<(), Error> {
        self.inner.handle(tx, topic, &*self.convert(event)?).await
    }

    fn handles_many(&self) -> bool {
        self.inner.handles_many()
    }

    async fn handle_all(
        &self,
        tx: &DatabaseTransaction,
        events: &[(&str, &Event)],
    ) -> Result<(), Error> {
        let converted = events.iter().map(|(topic, event)| Ok((*topic, self.convert(event)?)));
        let converted: Vec<(&str, Cow<'_, Event>)> = converted.collect::<Result<_, Error>>()?;
        let all: Vec<(&str, &Event)> =
            converted.iter().map(|(topic, event)| (*topic, &**event)).collect();
        self.inner.handle_all(tx, &all).await
    }
}
