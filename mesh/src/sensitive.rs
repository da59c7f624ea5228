//! Takes out of messages what their fields declare sensitive, by the option
//! `(omnibridge.common.v1.sensitive)`.

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, ReflectMessage as _, Value};

const OPTION: &str = "omnibridge.common.v1.sensitive";
/// What stands for a text that was taken out.
const REDACTED: &str = "[redacted]";

/// Takes out what is sensitive in `message` and in the messages in it.
pub(crate) fn redact(message: &mut DynamicMessage) {
    let fields: Vec<FieldDescriptor> =
        message.descriptor().fields().filter(|field| message.has_field(field)).collect();
    for field in fields {
        if is_sensitive(&field) {
            match field.kind() {
                Kind::String if !field.is_list() => {
                    message.set_field(&field, Value::String(REDACTED.to_owned()));
                }
                _ => message.clear_field(&field),
            }
        } else if matches!(field.kind(), Kind::Message(_)) {
            match message.get_field_mut(&field) {
                Value::Message(inner) => redact(inner),
                Value::List(items) => items.iter_mut().for_each(redact_value),
                Value::Map(entries) => entries.values_mut().for_each(redact_value),
                _ => {}
            }
        }
    }
}

fn redact_value(value: &mut Value) {
    if let Value::Message(message) = value {
        redact(message);
    }
}

fn is_sensitive(field: &FieldDescriptor) -> bool {
    let option = field.parent_pool().get_extension_by_name(OPTION);
    option.is_some_and(|option| field.options().get_extension(&option).as_bool() == Some(true))
}

#[cfg(test)]
mod tests {
    use prost_reflect::DescriptorPool;
    use serde_json::json;

    use super::*;

    const PROTO: &str = r#"
        syntax = "proto3";
        package test;
        import "omnibridge/common/v1/options.proto";
        message Order {
          string id = 1;
          string token = 2 [(omnibridge.common.v1.sensitive) = true];
          bytes scan = 3 [(omnibridge.common.v1.sensitive) = true];
          repeated string names = 4 [(omnibridge.common.v1.sensitive) = true];
          map<string, string> answers = 5 [(omnibridge.common.v1.sensitive) = true];
          Card card = 6;
          repeated Card cards = 7;
          map<string, Card> by_name = 8;
          oneof way { Card secret = 9 [(omnibridge.common.v1.sensitive) = true]; int32 free = 10; }
        }
        message Card {
          int64 number = 1 [(omnibridge.common.v1.sensitive) = true];
          string bank = 2;
        }
    "#;

    #[test]
    fn what_is_sensitive_is_taken_out_wherever_it_is() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("test.proto"), PROTO).unwrap();
        let ours = concat!(env!("CARGO_MANIFEST_DIR"), "/../proto");
        let mut compiler = protox::Compiler::new([folder.path(), ours.as_ref()]).unwrap();
        compiler.include_imports(true).open_file("test.proto").unwrap();
        let descriptors = compiler.encode_file_descriptor_set();
        let pool = DescriptorPool::decode(&descriptors[..]).unwrap();
        let order = pool.get_message_by_name("test.Order").unwrap();
        let card = json!({ "number": "4111", "bank": "b" });
        let message = json!({
            "id": "1", "token": "t", "scan": "AAAA", "names": ["n"], "answers": { "q": "a" },
            "card": card, "cards": [card], "byName": { "a": card }, "secret": card,
        });
        let mut message = DynamicMessage::deserialize(order, message).unwrap();
        redact(&mut message);
        let card = json!({ "bank": "b" });
        assert_eq!(
            serde_json::to_value(&message).unwrap(),
            json!({
                "id": "1", "token": "[redacted]",
                "card": card, "cards": [card], "byName": { "a": card },
            })
        );
    }
}
