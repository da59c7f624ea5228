//! proto3 JSON for messages that are known, by their descriptors.

use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor};

use crate::{descriptors, sensitive::redact};

/// Why a message can't go to or from JSON.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// Nobody has handed in its descriptor.
    #[error("the descriptor of `{0}` isn't known; see `mesh::descriptors::add`")]
    Unknown(String),
    /// The JSON isn't one of that message.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The message isn't what its descriptor says.
    #[error(transparent)]
    Message(#[from] prost::DecodeError),
}

fn descriptor<M: prost::Name>() -> Result<MessageDescriptor, JsonError> {
    let name = M::full_name();
    descriptors::pool().get_message_by_name(&name).ok_or(JsonError::Unknown(name))
}

/// `message` in proto3 JSON, without what its fields declare sensitive.
///
/// # Errors
/// When it isn't known.
pub fn encode_redacted<M: prost::Name>(message: &M) -> Result<Vec<u8>, JsonError> {
    let mut dynamic = DynamicMessage::new(descriptor::<M>()?);
    dynamic.transcode_from(message)?;
    redact(&mut dynamic);
    Ok(serde_json::to_vec(&dynamic)?)
}

/// A message from proto3 JSON. Fields that it doesn't have are passed over: who
/// wrote it may know more of them.
///
/// # Errors
/// When it isn't known, or the JSON isn't one of it.
pub fn decode<M: prost::Name + Default>(json: &[u8]) -> Result<M, JsonError> {
    let mut from = serde_json::Deserializer::from_slice(json);
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let dynamic =
        DynamicMessage::deserialize_with_options(descriptor::<M>()?, &mut from, &options)?;
    from.end()?;
    Ok(dynamic.transcode_to()?)
}
