//! What descriptors say of messages and of methods: those of the kernel's own, and those
//! that the program's services and clients hand in.
//!
//! There is one list for the process. Sets are added to it and never taken from it, and
//! they are a part of the program; so a method's path can be a label that lives as long as
//! the process, and there are only as many as the program has methods.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;
use prost::Message as _;
use prost_reflect::{DescriptorPool, MessageDescriptor, MethodDescriptor};
use prost_types::{FileDescriptorProto, method_options::IdempotencyLevel};

use crate::{Error, messages};

/// All that is known at the moment.
static KNOWN: LazyLock<ArcSwap<Known>> = LazyLock::new(|| {
    let mut known = Known::default();
    known.add(messages::DESCRIPTORS).expect("build.rs wrote what protox had checked");
    ArcSwap::from_pointee(known)
});

/// Serialises [`add`], which reads, extends and replaces [`KNOWN`].
static ADDING: Mutex<()> = Mutex::new(());

#[derive(Clone, Default)]
struct Known {
    pool: DescriptorPool,
    /// The encoded files by name, for prost's types don't keep our own options.
    files: HashMap<String, Vec<u8>>,
    /// Hashed for speed: its keys are the program's own.
    methods: HashMap<&'static str, &'static Method, RandomState>,
    /// The names of the messages that say they are the data of events.
    events: HashSet<String>,
}

/// A `google.protobuf.FileDescriptorSet` whose files stay encoded.
#[derive(Clone, PartialEq, prost::Message)]
struct EncodedSet {
    #[prost(bytes = "vec", repeated, tag = "1")]
    files: Vec<Vec<u8>>,
}

/// One method that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Method {
    /// Its path, such as `/shop.v1.Shop/Buy`.
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

impl Known {
    fn add(&mut self, encoded: &[u8]) -> Result<(), String> {
        let set = EncodedSet::decode(encoded).map_err(|why| why.to_string())?;
        for file in set.files {
            let decoded = FileDescriptorProto::decode(&*file).map_err(|why| why.to_string())?;
            let name = decoded.name().to_owned();
            match self.files.get(&name) {
                Some(known) if !are_same(known, &file) => {
                    return Err(format!("`{name}` says something else in another set"));
                }
                Some(_) => {}
                None => drop(self.files.insert(name, file)),
            }
        }
        self.pool.decode_file_descriptor_set(encoded).map_err(|why| why.to_string())?;
        for service in self.pool.services() {
            for method in service.methods() {
                if !self.methods.contains_key(path(&method).as_str()) {
                    let method: &'static Method = Box::leak(Box::new(Method::of(&method)));
                    self.methods.insert(&method.path, method);
                }
            }
        }
        let option = self.pool.get_extension_by_name("omnibridge.common.v1.event");
        let is_event = |message: &MessageDescriptor| {
            let is = |option| message.options().get_extension(option).as_bool() == Some(true);
            option.as_ref().is_some_and(is)
        };
        let events = self.pool.all_messages().filter(is_event);
        self.events = events.map(|message| message.full_name().to_owned()).collect();
        Ok(())
    }
}

/// Whether two files of one name say the same. Google's own are the same to us in every
/// version, and what only tells of the source doesn't count.
fn are_same(a: &[u8], b: &[u8]) -> bool {
    let decoded = |file: &[u8]| FileDescriptorProto::decode(file).unwrap_or_default();
    let (mut one, mut other) = (decoded(a), decoded(b));
    let with_source = [&mut one, &mut other].map(|file| file.source_code_info.take().is_some());
    a == b
        || one.name().starts_with("google/protobuf/")
        // Else only options that prost's types don't keep can differ.
        || (one == other && with_source.contains(&true))
}

/// Adds the encoded `google.protobuf.FileDescriptorSet` of a program's services or
/// clients, imports included, before their first channel is made. What is known already
/// stays.
///
/// # Errors
/// When it is none, or a file of it isn't the same as one of that name that is known.
pub fn add(encoded: &'static [u8]) -> Result<(), Error> {
    let _adding = ADDING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut known = Known::clone(&KNOWN.load());
    known.add(encoded).map_err(Error::Descriptors)?;
    KNOWN.store(Arc::new(known));
    Ok(())
}

/// Every message and service that is known.
pub fn pool() -> DescriptorPool {
    KNOWN.load().pool.clone()
}

/// Every message that says it is the data of events, by name.
pub fn events() -> Vec<MessageDescriptor> {
    let known = KNOWN.load();
    known.events.iter().filter_map(|name| known.pool.get_message_by_name(name)).collect()
}

/// Whether the message `name` says that it is the data of events.
pub(crate) fn is_event(name: &str) -> bool {
    KNOWN.load().events.contains(name)
}

/// The method at `path`; `None` where nobody has handed it in.
pub fn method(path: &str) -> Option<&'static Method> {
    KNOWN.load().methods.get(path).copied()
}

/// The paths of all methods that are known.
pub fn paths() -> Vec<&'static str> {
    KNOWN.load().methods.keys().copied().collect()
}

/// Whether `path` is a known method without streams.
pub fn is_unary(path: &str) -> bool {
    method(path).is_some_and(|method| !method.streaming)
}

/// The method's path, or `other` where it isn't known: for metrics, whose labels must not
/// grow with what is asked.
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

/// Adds the service `test.v1.Test`, as a program of its own would.
#[cfg(test)]
pub(crate) fn add_test_service() {
    static ENCODED: LazyLock<Vec<u8>> = LazyLock::new(|| tests::compile(tests::PROTO));
    add(&ENCODED).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const PROTO: &str = "syntax = 'proto3';
        package test.v1;
        message Nothing {}
        service Test {
          rpc Get(Nothing) returns (Nothing) { option idempotency_level = NO_SIDE_EFFECTS; }
          rpc List(Nothing) returns (Nothing) { option idempotency_level = NO_SIDE_EFFECTS; }
          rpc Put(Nothing) returns (Nothing);
          rpc Watch(Nothing) returns (stream Nothing);
        }";

    /// The encoded set of a file `test.proto`.
    pub(super) fn compile(text: &str) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("test.proto"), text).unwrap();
        let mut compiler = protox::Compiler::new([folder.path()]).unwrap();
        compiler.include_imports(true).open_file("test.proto").unwrap();
        compiler.encode_file_descriptor_set()
    }

    #[test]
    fn a_file_that_contradicts_one_of_its_name_is_refused() {
        add_test_service();
        for (from, to) in
            [("rpc Put", "rpc Set"), ("message Nothing {}", "message Nothing { int32 a = 1; }")]
        {
            let other = compile(&PROTO.replace(from, to)).leak();
            assert!(add(other).unwrap_err().to_string().contains("test.proto"));
        }
        assert!(add(compile(PROTO).leak()).is_ok());
    }

    #[test]
    fn methods_say_what_may_be_retried_and_what_streams() {
        // Twice adds nothing.
        add_test_service();
        add_test_service();
        for (method, idempotent, streaming) in
            [("Get", true, false), ("Put", false, false), ("Watch", false, true)]
        {
            let path = format!("/test.v1.Test/{method}");
            let expected = Method { path: path.clone(), idempotent, streaming };
            assert_eq!(super::method(&path), Some(&expected));
            assert_eq!(label(&path), path);
            assert_eq!(is_unary(&path), !streaming);
            assert!(paths().contains(&path.as_str()));
        }
        assert_eq!(super::method("/test.v1.Test/Nothing"), None);
        assert_eq!(label("/a/b"), "other");
        assert!(is_event("omnibridge.audit.v1.AuditEvent") && !is_event("test.v1.Nothing"));
        assert!(add(b"none").is_err());
    }
}
