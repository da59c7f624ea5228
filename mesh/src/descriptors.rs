//! What the descriptors say of each method of the API, looked up by its path.

use std::{
    collections::{HashMap, HashSet},
    sync::LazyLock,
};

use foldhash::fast::RandomState;
use prost_reflect::{DescriptorPool, MessageDescriptor, MethodDescriptor};
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
        .map(|method| Method::of(&method))
        .map(|method| (method.path.clone(), method))
        .collect()
});

/// One method of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Method {
    /// Its path, such as `/omnibridge.hooks.v1.HookReceiver/Receive`.
    pub path: String,
    /// Whether asking twice does no more than asking once.
    pub idempotent: bool,
    /// Whether requests or answers are a stream.
    pub streaming: bool,
}

impl Method {
    fn of(method: &MethodDescriptor) -> Self {
        let options = method.method_descriptor_proto().options.clone().unwrap_or_default();
        Self {
            path: path(method),
            idempotent: options.idempotency_level() != IdempotencyLevel::IdempotencyUnknown,
            streaming: method.is_client_streaming() || method.is_server_streaming(),
        }
    }
}

/// Every message that says it is the data of events.
pub fn events() -> impl Iterator<Item = MessageDescriptor> {
    let option = POOL.get_extension_by_name("omnibridge.common.v1.event");
    POOL.all_messages().filter(move |message| {
        let is = |option| message.options().get_extension(option).as_bool() == Some(true);
        option.as_ref().is_some_and(is)
    })
}

/// The names of those.
pub(crate) static EVENTS: LazyLock<HashSet<String>> =
    LazyLock::new(|| events().map(|message| message.full_name().to_owned()).collect());

/// The method at `path`; `None` where the API has no such method.
pub fn method(path: &str) -> Option<&'static Method> {
    METHODS.get(path)
}

/// The paths of all methods of the API.
pub fn paths() -> impl Iterator<Item = &'static str> {
    METHODS.keys().map(String::as_str)
}

/// Whether `path` is a method of the API without streams.
pub fn is_unary(path: &str) -> bool {
    method(path).is_some_and(|method| !method.streaming)
}

/// The method's path, or `other` where the API has none: for metrics, whose
/// labels must not grow with what is asked.
pub fn name(method: Option<&'static Method>) -> &'static str {
    method.map_or("other", |method| &method.path)
}

/// [`name`] of the method at `path`.
pub fn label(path: &str) -> &'static str {
    name(method(path))
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
        let path = |method: &str| format!("/omnibridge.hooks.v1.HookReceiver/{method}");
        for (method, streaming) in [("Receive", false), ("WatchHooks", true)] {
            let expected = Method { path: path(method), idempotent: true, streaming };
            assert_eq!(super::method(&path(method)), Some(&expected));
            assert_eq!(label(&path(method)), path(method));
            assert_eq!(is_unary(&path(method)), !streaming);
        }
        assert_eq!(super::method(&path("Nothing")), None);
        assert_eq!(label("/a/b"), "other");
    }
}
