//! OmniBridge's API: what `build.rs` made of the `.proto` files beside this
//! one, and their descriptor set. Nothing here is written by hand.

#![allow(missing_docs, clippy::doc_markdown, clippy::large_futures)]

/// The messages, clients and servers, by package.
pub mod omnibridge {
    pub mod audit {
        pub mod v1 {
            tonic::include_proto!("omnibridge.audit.v1");
        }
    }
    pub mod common {
        pub mod v1 {
            tonic::include_proto!("omnibridge.common.v1");
        }
    }
    pub mod coordinator {
        pub mod v1 {
            tonic::include_proto!("omnibridge.coordinator.v1");
        }
    }
    pub mod events {
        pub mod v1 {
            tonic::include_proto!("omnibridge.events.v1");
        }
    }
    pub mod hooks {
        pub mod v1 {
            tonic::include_proto!("omnibridge.hooks.v1");
        }
    }
    pub mod lifecycle {
        pub mod v1 {
            tonic::include_proto!("omnibridge.lifecycle.v1");
        }
    }
}

pub use omnibridge::{audit, common, coordinator, events, hooks, lifecycle};

/// The encoded `google.protobuf.FileDescriptorSet` of all of it, for
/// reflection and for JSON.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
