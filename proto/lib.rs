//! OmniBridge's API: what `build.rs` made of the `.proto` files beside this
//! one, and their descriptor set.

#![allow(missing_docs, clippy::doc_markdown, clippy::large_futures)]

include!(concat!(env!("OUT_DIR"), "/api.rs"));

pub use omnibridge::*;

/// The encoded `google.protobuf.FileDescriptorSet` of all of it, for
/// reflection and for JSON.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
