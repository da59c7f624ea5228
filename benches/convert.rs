//! What it costs to make a message of one version one of another: a request of
//! 1 KB, decoded, converted and encoded.

#![allow(clippy::unwrap_used, reason = "a benchmark that can't go on fails")]

use bytes::Bytes;
use convert::{Conversion, Direction, Mapping, Transform};
use divan::{AllocProfiler, Bencher};
use prost_reflect::{DescriptorPool, DynamicMessage, prost::Message as _};
use serde_json::{Value, json};
use tikv_jemallocator::Jemalloc;

/// What is allocated is part of what is promised, by the allocator that `omni` has.
#[global_allocator]
static ALLOCATOR: AllocProfiler<Jemalloc> = AllocProfiler::new(Jemalloc);

fn main() {
    divan::main();
}

fn pool(version: &str) -> DescriptorPool {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../convert/tests/shop");
    let mut compiler = protox::Compiler::new([folder]).unwrap();
    compiler.include_imports(true).open_file(format!("{version}.proto")).unwrap();
    compiler.descriptor_pool()
}

fn conversion() -> Conversion {
    let mapping = Mapping::parse(include_str!("../convert/tests/shop/shop.toml")).unwrap();
    Conversion::prove(&mapping, &pool("v1"), &pool("v2")).1.unwrap()
}

fn message(transform: &Transform, json: Value) -> Bytes {
    let message = DynamicMessage::deserialize(transform.source().clone(), json).unwrap();
    message.encode_to_vec().into()
}

/// 1 KB: an order of 16 things.
fn order() -> Value {
    let item = json!({"name": "a tin of tea, 250 g, of the second flush, leaf", "count": 2});
    json!({
        "id": "o-1", "customer": "Ann", "street": "High Street", "city": "Ely",
        "price": 12.5, "status": "STATUS_SENT", "note": "quick", "account": "DE12",
        "orderedAt": "1700000000", "items": vec![item; 18],
    })
}

/// With three expressions of CEL.
#[divan::bench]
fn upgrade_an_order(bencher: Bencher<'_, '_>) {
    let conversion = conversion();
    let transform = conversion.message(Direction::Upgrade, "shop.v1.Order").unwrap();
    let bytes = message(transform, order());
    assert!((950..1_050).contains(&bytes.len()), "{}", bytes.len());
    bencher.bench(|| transform.bytes(bytes.clone()).unwrap());
}

/// With two for the order, and one for each of its things.
#[divan::bench]
fn downgrade_a_purchase(bencher: Bencher<'_, '_>) {
    let conversion = conversion();
    let upgrade = conversion.message(Direction::Upgrade, "shop.v1.Order").unwrap();
    let downgrade = conversion.message(Direction::Downgrade, "shop.v2.PurchaseOrder").unwrap();
    let bytes = upgrade.bytes(message(upgrade, order())).unwrap();
    bencher.bench(|| downgrade.bytes(bytes.clone()).unwrap());
}

/// What has the same bytes in both versions isn't looked at.
#[divan::bench]
fn pass_a_receipt(bencher: Bencher<'_, '_>) {
    let conversion = conversion();
    let transform = conversion.message(Direction::Upgrade, "shop.v1.Receipt").unwrap();
    let bytes = message(transform, json!({"orderId": "o-1", "at": "2023-11-14T22:13:20Z"}));
    bencher.bench(|| transform.bytes(bytes.clone()).unwrap());
}
