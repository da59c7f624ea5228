//! The older package, in which nobody answers: version-bridge makes its calls
//! those of the API, by the mapping that lies beside it in `older/`.

use bytes::Bytes;
use tonic::{Status, transport::Channel};

pub(crate) use self::proto::inbox_client::InboxClient;
use self::proto::{DeliverRequest, Origin};
use crate::load::Echo;

/// Where the package and its mapping are.
pub(crate) const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/older");

/// What `older.proto` generates.
mod proto {
    tonic::include_proto!("older");
}

impl Echo for InboxClient<Channel> {
    async fn call(&mut self, text: Bytes) -> Result<String, Status> {
        // Every field has a value: what is unset costs no conversion.
        let request = DeliverRequest {
            origin: Some(Origin { name: "shop".to_owned(), number: "4711".to_owned() }),
            event: "order.paid".to_owned(),
            conversation: "c-17".to_owned(),
            thread: "o-42".to_owned(),
            payload: text,
            media_type: "text/plain".to_owned(),
        };
        Ok(self.deliver(request).await?.into_inner().kept_as)
    }
}
