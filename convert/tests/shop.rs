//! A worked example: the two versions of a shop, and their mapping.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use convert::{Conversion, Direction, Error, Mapping, Report};
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::{Value, json};

const MAPPING: &str = include_str!("shop/shop.toml");

fn pool(version: &str) -> DescriptorPool {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shop");
    let mut compiler = protox::Compiler::new([folder]).unwrap();
    compiler.include_imports(true).open_file(format!("{version}.proto")).unwrap();
    compiler.descriptor_pool()
}

fn prove(mapping: &str) -> (Report, Option<Conversion>) {
    let mapping = Mapping::parse(mapping).unwrap();
    Conversion::prove(&mapping, &pool("v1"), &pool("v2"))
}

fn convert(direction: Direction, message: &str, json: Value) -> Result<Value, Error> {
    let (report, conversion) = prove(MAPPING);
    let conversion = conversion.unwrap_or_else(|| panic!("{report:#?}"));
    let transform = conversion.message(direction, message).unwrap();
    let message = DynamicMessage::deserialize(transform.source().clone(), json).unwrap();
    Ok(serde_json::to_value(transform.message(message)?).unwrap())
}

fn order() -> Value {
    json!({
        "id": "o-1", "customer": "Ann", "street": "High Street", "city": "Ely",
        "price": 12.5, "status": "STATUS_SENT", "note": "quick",
        "items": [{"name": "tea", "count": 2}], "account": "DE12", "orderedAt": "1700000000",
    })
}

fn purchase() -> Value {
    json!({
        "id": "o-1",
        "buyer": {"name": "Ann", "address": {"street": "High Street", "city": "Ely"}},
        "priceCents": "1250", "currency": "EUR", "state": "STATE_SENT",
        "items": [{"name": "tea", "count": "2"}], "iban": "DE12",
        "orderedAt": "2023-11-14T22:13:20Z",
    })
}

#[test]
fn an_order_becomes_a_purchase_and_the_reverse() {
    let upgraded = convert(Direction::Upgrade, "shop.v1.Order", order()).unwrap();
    assert_eq!(upgraded, purchase());
    let mut returned = order();
    returned.as_object_mut().unwrap().remove("note");
    let downgraded = convert(Direction::Downgrade, "shop.v2.PurchaseOrder", purchase()).unwrap();
    assert_eq!(downgraded, returned);
}

#[test]
fn nothing_becomes_nothing_but_what_is_computed() {
    let empty = convert(Direction::Upgrade, "shop.v1.Order", json!({})).unwrap();
    assert_eq!(empty, json!({"currency": "EUR"}));
    let empty = convert(Direction::Downgrade, "shop.v2.PurchaseOrder", json!({})).unwrap();
    assert_eq!(empty, json!({}));
}

#[test]
fn a_value_without_a_counterpart_is_an_error_that_names_it() {
    let many = json!({"items": [{"name": "sand", "count": "5000000000"}]});
    let why = convert(Direction::Downgrade, "shop.v2.PurchaseOrder", many).unwrap_err();
    assert_eq!(
        why.to_string(),
        "`count` of `shop.v1.Item`: Int(5000000000) is too large or too small for int32"
    );
    // 2 isn't known to the newer enum, and is another's in the older one.
    let unknown = json!({"state": 2});
    let why = convert(Direction::Downgrade, "shop.v2.PurchaseOrder", unknown).unwrap_err();
    assert!(why.to_string().starts_with("`status` of `shop.v1.Order`: the number 2"), "{why}");
    let kept = convert(Direction::Downgrade, "shop.v2.PurchaseOrder", json!({"state": 77}));
    assert_eq!(kept.unwrap(), json!({"status": 77}));
}

#[test]
fn what_is_lost_is_said() {
    let (report, conversion) = prove(MAPPING);
    assert_eq!(report.problems, []);
    let losses: Vec<String> = report.losses.iter().map(ToString::to_string).collect();
    for said in [
        "upgrade of shop.v1.Order: what `note` holds doesn't come back",
        "upgrade of shop.v1.Order: what `price` holds doesn't come back",
        "upgrade of shop.v1.Order: `STATUS_LOST` of `status` comes back as another",
        "upgrade of shop.v1.Shop: the method `Haggle` has no counterpart",
        "downgrade of shop.v2.PurchaseOrder: what `labels` holds doesn't come back",
        "downgrade of shop.v2.PurchaseOrder: whether `buyer` is set, where nothing in it is, is lost",
        "downgrade of shop.v2.Item: what `count` holds doesn't come back",
    ] {
        assert!(losses.iter().any(|loss| loss == said), "{said}\n{losses:#?}");
    }
    let conversion = conversion.unwrap();
    let of = |direction, name| conversion.message(direction, name).unwrap();
    assert!(!of(Direction::Upgrade, "shop.v1.Order").is_exact());
    assert!(of(Direction::Upgrade, "shop.v1.Receipt").is_exact());
    assert!(of(Direction::Upgrade, "shop.v1.Receipt").keeps_bytes());
    assert!(!of(Direction::Upgrade, "shop.v1.Item").keeps_bytes());
}

#[test]
fn calls_are_converted_with_their_requests_and_answers() {
    let (_, conversion) = prove(MAPPING);
    let conversion = conversion.unwrap();
    let buy = conversion.method(Direction::Upgrade, "/shop.v1.Shop/Buy").unwrap();
    assert_eq!(buy.path, "/shop.v2.Shop/Purchase");
    assert_eq!(buy.request.target().full_name(), "shop.v2.PurchaseOrder");
    assert_eq!(buy.answer.source().full_name(), "shop.v2.Receipt");
    let purchase = conversion.method(Direction::Downgrade, "/shop.v2.Shop/Purchase").unwrap();
    assert_eq!(purchase.path, "/shop.v1.Shop/Buy");
    assert!(conversion.method(Direction::Upgrade, "/shop.v1.Shop/Haggle").is_none());
}

#[test]
fn what_a_mapping_lacks_or_gets_wrong_is_named() {
    for (from, to, said) in [
        (
            "drop = [\"note\"]\n",
            "",
            "upgrade of shop.v1.Order: `note` of the source is read by nothing: map it or name it in `drop`",
        ),
        (
            "unset = [\"labels\"]\n",
            "",
            "upgrade of shop.v1.Order: `labels` of the target gets no value: map it, set it or name it in `unset`",
        ),
        (
            "set.currency = \"'EUR'\"",
            "set.currency = \"12\"",
            "upgrade of shop.v1.Order: `currency` = \"12\": it gives int, not string",
        ),
        (
            "set.currency = \"'EUR'\"",
            "set.currency = \"'EUR\"",
            "upgrade of shop.v1.Order: `currency` = \"'EUR\": no expression: ",
        ),
        (
            "set.currency = \"'EUR'\"",
            "set.currency = \"money\"",
            "upgrade of shop.v1.Order: `currency` = \"money\": `shop.v1.Order` has no field `money`",
        ),
        (
            "set.currency = \"'EUR'\"",
            "set.currency = \"id + 1\"",
            "upgrade of shop.v1.Order: `currency` = \"id + 1\": Unsupported binary operator",
        ),
        (
            "set.count = \"count\"",
            "",
            "downgrade of shop.v2.Item: `count` to `count`: not every int64 is a int32; set it",
        ),
        (
            "customer = \"buyer.name\"",
            "customer = \"buyer.title\"",
            "upgrade of shop.v1.Order: `buyer.title`: `shop.v2.Buyer` has no field `title`",
        ),
        (
            "upgrade = { STATUS_LOST = \"STATE_OPEN\" }",
            "",
            "upgrade of shop.v1.Status: `STATUS_LOST` is nothing there: `shop.v2.State` has no `STATUS_LOST`",
        ),
        (
            "Buy = \"Purchase\"",
            "Buy = \"Sell\"",
            "downgrade of shop.v2.Shop: it has no method `Sell`, which the mapping names",
        ),
        (
            "name = \"PurchaseOrder\"",
            "name = \"Sale\"",
            "downgrade of shop.v2.Sale: it isn't there; the mapping pairs `Order` with `Sale`",
        ),
        (
            "new = \"shop.v2\"",
            "new = \"shop.v3\"",
            "downgrade of shop.v3: no file of these descriptors has the package `shop.v3`",
        ),
        (
            "account = \"iban\"",
            "account = \"card\"",
            "upgrade of shop.v1.Order: `card` of the source is read by nothing: map it or name it in `drop`",
        ),
    ] {
        let mapping = MAPPING.replacen(from, to, 1);
        assert_ne!(mapping, MAPPING, "{from}");
        let (report, conversion) = prove(&mapping);
        assert!(conversion.is_none(), "{from}");
        let problems: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
        assert!(problems.iter().any(|problem| problem.starts_with(said)), "{said}\n{problems:#?}");
    }
}

#[test]
fn a_file_that_is_no_mapping_is_refused() {
    for (file, said) in [
        ("old = \"a.v1\"", "new"),
        ("old = \"a.v1\"\nnew = \"a.v1\"", "both"),
        ("old = \"a.v1\"\nnew = \"a.v2\"\n[messages.A]\nfoo = 1", "foo"),
    ] {
        let why = Mapping::parse(file).unwrap_err().to_string();
        assert!(why.contains(said), "{why}");
    }
}
