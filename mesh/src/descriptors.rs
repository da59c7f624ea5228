//! What the descriptors say of each method of the API, looked up by its path.

use std::{collections::HashMap, sync::LazyLock};

use foldhash::fast::RandomState;
use prost_reflect::{DescriptorPool, MethodDescriptor};
use prost_types::method_options::IdempotencyLevel;

/// Every message and service of the API.
pub static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(api::DESCRIPTORS).expect("build.rs wrote what protox had checked")
});

/// Hashed for speed: its keys are the API's own, and nobody adds to them.
static METHODS: LazyLock<HashMap<String, Method, RandomState>> = LazyLock::new(|| {
    let services = POOL.services();
    services
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .map(|method| (path(&method), Method::of(&method)))
        .collect()
});

/// One method of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Method {
    /// Whether asking twice does no more than asking once.
    pub idempotent: bool,
    /// Whether requests or answers are a stream.
    pub streaming: bool,
}

impl Method {
    fn of(method: &MethodDescriptor) -> Self {
        let options = method.method_descriptor_proto().options.clone().unwrap_or_default();
        Self {
            idempotent: options.idempotency_level() != IdempotencyLevel::IdempotencyUnknown,
            streaming: method.is_client_streaming() || method.is_server_streaming(),
        }
    }
}

/// The method at `path`, such as `/omnibridge.hooks.v1.HookReceiver/Receive`;
/// `None` where the API has no such method.
pub fn method(path: &str) -> Option<&'static Method> {
    METHODS.get(path)
}

/// The paths of all methods of the API.
pub fn paths() -> impl Iterator<Item = &'static str> {
    METHODS.keys().map(String::as_str)
}

/// `path` if it is one of the API, else `other`: for metrics, whose labels must
/// not grow with what is asked.
pub fn label(path: &str) -> &'static str {
    METHODS.get_key_value(path).map_or("other", |(path, _)| path.as_str())
}

/// The path of a method.
pub fn path(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_say_what_may_be_retried_and_what_streams() {
        let of =
            |method: &str| super::method(&format!("/omnibridge.hooks.v1.HookReceiver/{method}"));
        assert_eq!(of("Receive"), Some(&Method { idempotent: true, streaming: false }));
        assert_eq!(of("WatchHooks"), Some(&Method { idempotent: true, streaming: true }));
        assert_eq!(of("Nothing"), None);
        assert_eq!(label("/a/b"), "other");
    }
}
