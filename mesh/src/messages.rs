//! The kernel's own messages: what `build.rs` made of their `.proto` files, and their
//! descriptor set.

#![allow(missing_docs, clippy::doc_markdown)]

include!(concat!(env!("OUT_DIR"), "/messages.rs"));

pub use omnibridge::*;

/// The encoded `google.protobuf.FileDescriptorSet` of all of it.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
