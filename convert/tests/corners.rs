//! Mappings of a few lines, each of which would change a message without a word.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use convert::{Conversion, Direction, Mapping, Report};
use prost_reflect::{DescriptorPool, DynamicMessage};
use protox::file::{File, FileResolver};
use serde_json::{Value, json};

struct InMemory(String);

impl FileResolver for InMemory {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        match name {
            "test.proto" => File::from_source(name, &self.0),
            _ => protox::file::GoogleFileResolver::new().open_file(name),
        }
    }
}

fn pool(package: &str, text: &str) -> DescriptorPool {
    let text = format!("syntax = \"proto3\";\npackage {package};\n{text}");
    let mut compiler = protox::Compiler::with_file_resolver(InMemory(text));
    compiler.include_imports(true).open_file("test.proto").unwrap();
    compiler.descriptor_pool()
}

fn prove(old: &str, new: &str, mapping: &str) -> (Report, Option<Conversion>) {
    let mapping = Mapping::parse(&format!("old = \"v1\"\nnew = \"v2\"\n{mapping}")).unwrap();
    Conversion::prove(&mapping, &pool("v1", old), &pool("v2", new))
}

fn converted(conversion: &Conversion, direction: Direction, message: &str, json: Value) -> Value {
    let transform = conversion.message(direction, message).unwrap();
    let message = DynamicMessage::deserialize(transform.source().clone(), json).unwrap();
    serde_json::to_value(transform.message(message).unwrap()).unwrap()
}

#[track_caller]
fn is_lossy(old: &str, new: &str, mapping: &str, message: &str, said: &str) {
    let (report, conversion) = prove(old, new, mapping);
    let conversion = conversion.unwrap_or_else(|| panic!("{report:#?}"));
    assert!(!conversion.message(Direction::Upgrade, message).unwrap().is_exact());
    assert!(report.losses.iter().any(|loss| loss.to_string().contains(said)), "{report:#?}");
}

#[test]
fn a_message_that_is_there_and_lost_what_it_held_is_lossy() {
    let (old, new) = (
        "message O { M m = 1; } message M { string x = 1; }",
        "message O { M m = 1; } message M { string y = 1; }",
    );
    let mapping = "[messages.O]\nupgrade = { drop = ['m.x'], unset = ['m.y'] }\n\
        downgrade = { drop = ['m.y'], unset = ['m.x'] }\n\
        [messages.M]\nupgrade = { drop = ['x'], unset = ['y'] }\n\
        downgrade = { drop = ['y'], unset = ['x'] }";
    is_lossy(old, new, mapping, "v1.O", "what `m.x` holds");
}

#[test]
fn a_message_that_something_else_makes_is_lossy() {
    let old = "message O { M m = 1; string s = 2; } message M { string a = 1; }";
    let new = "message O { M m = 1; } message M { string a = 1; string s = 2; }";
    let mapping = "[messages.O]\nfields = { s = 'm.s' }\n\
        [messages.M]\nupgrade = { unset = ['s'] }\ndowngrade = { drop = ['s'] }";
    is_lossy(old, new, mapping, "v1.O", "whether `m` is set");
}

#[test]
fn a_value_that_changes_on_its_way_back_is_lossy() {
    let text = "enum E { A = 0; B = 1; } message O { E e = 1; }";
    is_lossy(text, text, "[enums.E]\ndowngrade = { A = 'B' }", "v1.O", "`A` of `e`");
}

#[test]
fn what_reads_as_a_value_is_converted_although_it_is_not_there() {
    let old = "enum E { OPEN = 0; SHUT = 1; } message O { E s = 1; }";
    let new =
        "enum E { SHUT = 0; OPEN = 1; } message O { Info info = 1; } message Info { E s = 1; }";
    let (report, conversion) = prove(old, new, "[messages.O]\nfields = { s = 'info.s' }");
    let conversion = conversion.unwrap_or_else(|| panic!("{report:#?}"));
    let there = converted(&conversion, Direction::Upgrade, "v1.O", json!({}));
    assert_eq!(there, json!({"info": {"s": "OPEN"}}));
    let back = converted(&conversion, Direction::Downgrade, "v2.O", json!({}));
    assert_eq!(back, json!({"s": "SHUT"}));
}

#[test]
fn bytes_pass_only_where_presence_and_oneofs_are_the_same() {
    for (old, new) in [
        ("optional int32 a = 1;", "int32 a = 1;"),
        ("int32 a = 1; int32 b = 2;", "oneof c { int32 a = 1; int32 b = 2; }"),
        ("int32 a = 1;", "sint32 a = 1;"),
        ("int32 a = 1;", "int32 a = 2;"),
    ] {
        let message = |fields: &str| format!("message O {{ {fields} }}");
        let (_, conversion) = prove(&message(old), &message(new), "");
        let conversion = conversion.unwrap();
        assert!(!conversion.message(Direction::Upgrade, "v1.O").unwrap().keeps_bytes(), "{new}");
    }
}

#[test]
fn a_type_of_itself_can_be_told_of_and_a_shared_one_called_with() {
    let text = "import \"google/protobuf/empty.proto\";\n\
        message Node { Node next = 1; }\n\
        service S { rpc Ping(google.protobuf.Empty) returns (Node); }";
    let (report, conversion) = prove(text, text, "");
    let conversion = conversion.unwrap_or_else(|| panic!("{report:#?}"));
    assert!(format!("{conversion:?}").contains("v1.Node → v2.Node"));
    assert!(conversion.method(Direction::Upgrade, "/v1.S/Ping").is_some());
}

#[test]
fn both_versions_can_be_of_one_set_of_descriptors() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shop");
    let mut compiler = protox::Compiler::new([folder]).unwrap();
    compiler.include_imports(true).open_files(["v1.proto", "v2.proto"]).unwrap();
    let pool = compiler.descriptor_pool();
    let mapping = Mapping::parse(include_str!("shop/shop.toml")).unwrap();
    let (report, conversion) = Conversion::prove(&mapping, &pool, &pool);
    assert!(conversion.is_some(), "{report:#?}");
}

#[test]
fn an_expression_is_bounded() {
    let text = "message O { repeated int32 a = 1; string b = 2; }";
    for (expression, said) in [
        ("string(a.map(x, a.map(y, x)))", "can't be within another one"),
        ("has(a.b) ? '' : ''", "`has` says nothing"),
        (&*format!("'{}'", "x".repeat(5_000)), "4096 bytes"),
    ] {
        let mapping =
            format!("[messages.O.upgrade]\nset.b = \"\"\"{expression}\"\"\"\ndrop = ['b']");
        let (report, conversion) = prove(text, text, &mapping);
        assert!(conversion.is_none());
        assert!(report.problems.iter().any(|one| one.what.contains(said)), "{report:#?}");
    }
    let mapping = "[messages.O.upgrade]\nset.b = 'string(size(a))'\ndrop = ['b']";
    let conversion = prove(text, text, mapping).1.unwrap();
    let few = converted(&conversion, Direction::Upgrade, "v1.O", json!({"a": [1, 2]}));
    assert_eq!(few["b"], "2");
    let transform = conversion.message(Direction::Upgrade, "v1.O").unwrap();
    let many = json!({"a": vec![1; 60_000]});
    let many = DynamicMessage::deserialize(transform.source().clone(), many).unwrap();
    let why = transform.message(many).unwrap_err();
    assert!(why.to_string().contains("50000 values"), "{why}");
}
