//! A thousand pairs of versions that a generator made, with their mappings: what
//! the proof accepts converts, and what it calls exact comes back as it was.

mod schema;

use convert::{Conversion, Direction, Mapping, propose};
use prost_reflect::{
    DynamicMessage, Kind, MessageDescriptor, ReflectMessage as _, Value, prost::Message as _,
};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

use self::schema::Versions;

const PAIRS: u64 = 1_000;
const MESSAGES: u32 = 8;

#[test]
fn what_is_accepted_converts_and_what_is_exact_comes_back() {
    let (mut exact, mut lossy, mut failed) = (0_u32, 0_u32, 0_u32);
    for seed in 0..PAIRS {
        let mut rng = SmallRng::seed_from_u64(seed);
        let versions = Versions::generate(&mut rng);
        let (old, new) = versions.compile();
        let (report, conversion) = Conversion::prove(&versions.mapping, &old, &new);
        let conversion = conversion.unwrap_or_else(|| panic!("{seed}: {report:#?}\n{versions}"));
        for direction in [Direction::Upgrade, Direction::Downgrade] {
            let mut transforms: Vec<_> = conversion.messages(direction).collect();
            transforms.sort_by(|a, b| a.source().full_name().cmp(b.source().full_name()));
            for there in transforms {
                let back = conversion.message(direction.reverse(), there.target().full_name());
                let back = back.expect("counterparts are each other's");
                for _ in 0..MESSAGES {
                    let message = encoded(&any_message(there.source(), &mut rng, 3));
                    let Ok(converted) = there.message(message.clone()) else {
                        assert!(
                            !there.is_exact(),
                            "{seed}: {}\n{versions}",
                            there.source().full_name()
                        );
                        failed += 1;
                        continue;
                    };
                    if there.keeps_bytes() {
                        assert!(there.is_exact(), "{seed}\n{versions}");
                    }
                    if !there.is_exact() {
                        lossy += 1;
                        continue;
                    }
                    let returned = back.message(encoded(&converted)).expect("exact is both ways");
                    assert!(encoded(&returned) == message, "{seed}: {direction}\n{versions}");
                    exact += 1;
                }
            }
        }
    }
    // The generator makes enough of both.
    println!("{exact} came back, {lossy} may have lost something, {failed} had no counterpart");
    assert!(exact > 10_000 && lossy > 10_000 && failed < lossy, "{exact} {lossy} {failed}");
}

#[test]
fn a_mapping_that_lacks_something_is_refused_not_guessed() {
    let mut refused = 0;
    for seed in 0..PAIRS {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut versions = Versions::generate(&mut rng);
        let (old, new) = versions.compile();
        if !versions.forget_a_rule(&mut rng) {
            continue;
        }
        let (report, conversion) = Conversion::prove(&versions.mapping, &old, &new);
        assert!(conversion.is_none() && !report.problems.is_empty(), "{seed}\n{versions}");
        refused += 1;
    }
    assert!(refused > 500, "{refused}");
}

/// As it is when it has been on its way: what is its default by itself isn't there.
fn encoded(message: &DynamicMessage) -> DynamicMessage {
    let bytes = message.encode_to_vec();
    DynamicMessage::decode(message.descriptor(), &*bytes).expect("it was encoded")
}

fn any_message(of: &MessageDescriptor, rng: &mut SmallRng, depth: u8) -> DynamicMessage {
    let mut message = DynamicMessage::new(of.clone());
    for field in of.fields() {
        if rng.random_ratio(1, 3) {
            continue;
        }
        let kind = field.kind();
        let value = match &kind {
            Kind::Message(_) if depth == 0 => continue,
            Kind::Message(entry) if field.is_map() => {
                let entries = (0..rng.random_range(0..3)).map(|_| {
                    let key = any_value(&entry.map_entry_key_field().kind(), rng, depth - 1);
                    let value = any_value(&entry.map_entry_value_field().kind(), rng, depth - 1);
                    (key.into_map_key().expect("keys are scalars"), value)
                });
                Value::Map(entries.collect())
            }
            kind if field.is_list() => {
                let length = rng.random_range(0..3);
                let depth = depth.saturating_sub(1);
                Value::List((0..length).map(|_| any_value(kind, rng, depth)).collect())
            }
            kind => any_value(kind, rng, depth.saturating_sub(1)),
        };
        message.set_field(&field, value);
    }
    message
}

fn any_value(kind: &Kind, rng: &mut SmallRng, depth: u8) -> Value {
    // Defaults and the ends of ranges more often than chance would have them.
    let edge = rng.random_ratio(1, 4);
    match kind {
        Kind::Double => Value::F64(if edge { 0.0 } else { rng.random_range(-1e300..1e300) }),
        Kind::Float => Value::F32(if edge { f32::MAX } else { rng.random_range(-1e30..1e30) }),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(if edge {
            [0, i32::MIN, i32::MAX][rng.random_range(0..3)]
        } else {
            rng.random()
        }),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(if edge {
            [0, i64::MIN, i64::MAX][rng.random_range(0..3)]
        } else {
            rng.random()
        }),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(if edge { 0 } else { rng.random() }),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(if edge { u64::MAX } else { rng.random() }),
        Kind::Bool => Value::Bool(rng.random()),
        Kind::String => {
            let text: String = (0..rng.random_range(0..4)).map(|_| rng.random::<char>()).collect();
            Value::String(text)
        }
        Kind::Bytes => {
            let bytes: Vec<u8> = (0..rng.random_range(0..4)).map(|_| rng.random()).collect();
            Value::Bytes(bytes.into())
        }
        Kind::Enum(values) => {
            let values: Vec<_> = values.values().collect();
            // And one that no version knows.
            match rng.random_range(0..=values.len()) {
                nth if nth < values.len() => Value::EnumNumber(values[nth].number()),
                _ => Value::EnumNumber(9_999),
            }
        }
        Kind::Message(message) => Value::Message(any_message(message, rng, depth)),
    }
}

#[test]
fn what_is_proposed_can_be_proven() {
    let mut guesses = 0;
    for seed in 0..PAIRS {
        let mut rng = SmallRng::seed_from_u64(seed);
        let versions = Versions::generate(&mut rng);
        let (old, new) = versions.compile();
        let proposal = propose((&old, "test.v1"), (&new, "test.v2"));
        let file = proposal.to_toml();
        let mapping = Mapping::parse(&file).unwrap_or_else(|why| panic!("{seed}: {why}\n{file}"));
        let (report, conversion) = Conversion::prove(&mapping, &old, &new);
        assert!(conversion.is_some(), "{seed}: {report:#?}\n{file}\n{versions}");
        guesses += proposal.changes.iter().filter(|change| change.what.contains("guess")).count();
    }
    assert!(guesses > 100, "{guesses}");
}

#[test]
fn the_same_versions_need_no_word() {
    for seed in 0..100 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let versions = Versions::generate(&mut rng);
        let (old, _) = versions.compile();
        let same = versions.same_as_old();
        let proposal = propose((&old, "test.v1"), (&same, "test.v2"));
        assert_eq!(proposal.changes, []);
        let (report, conversion) = Conversion::prove(&proposal.mapping, &old, &same);
        assert_eq!(report, Default::default());
        let conversion = conversion.expect("nothing is wrong");
        for transform in conversion.messages(Direction::Upgrade) {
            assert!(transform.is_exact() && transform.keeps_bytes(), "{seed}");
        }
    }
}
