//! Two versions of the tests' own service, callers of both, and version-bridge
//! between them; each test for every way in which instances are found.

mod conversion;
mod routing;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use futures::stream;
use http::{Request as HttpRequest, Response as HttpResponse};
use mesh::{
    call::CALLER_HEADER,
    client::{Channel, Client},
    config::Config,
    identity, policy, registry,
    status::{Reason, reason},
};
use semver::VersionReq;
use tests::{
    fleet::Fleet,
    ground::{Consul, Ground},
    page,
    process::{self, Process},
    shop::{
        self, CALLER, ECHO, GIVEN_UP, SLOW,
        proto::{
            v1::{self, order::Payment, shop_client::ShopClient as OldClient},
            v2::{self, shop_client::ShopClient as NewClient},
        },
    },
    turn::Turn,
    until,
};
use tonic::{Code, Request, Status, body::Body};
use tonic_types::StatusExt as _;

pub use self::{conversion::*, routing::*};

/// The tests for one way in which instances are found.
macro_rules! on {
    ($ground:expr) => {
        crate::versions::on! { $ground;
            callers_of_the_old_version_are_answered_by_the_new_one
            callers_of_the_new_version_are_answered_by_the_old_one
            events_of_either_version_reach_consumers_of_either
            what_goes_with_a_call_goes_through_its_conversion
            what_can_not_be_converted_is_refused_by_name
            what_nobody_converts_is_left_to_those_who_speak_it
            a_canary_gets_its_share_and_rules_change_under_load
            people_see_versions_and_set_rules
            people_call_a_version_that_nobody_speaks
            the_page_shows_what_a_reader_sees
        }
    };
    ($ground:expr; $($test:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                crate::versions::$test($ground).await;
            }
        )*
    };
}
pub(crate) use on;

/// Who may forward calls to the shop, and call it itself.
const PROXY: &str = shop::CALLER_OF_SHOPS;

/// Shops in some versions, and a bridge between them.
struct Market {
    fleet: Fleet,
    shops: Vec<Process>,
    bridge: Option<(Process, SocketAddr)>,
}

impl Market {
    async fn open(ground: Ground, versions: &[&str], bridged: bool) -> Self {
        let mappings = shop::mappings().display().to_string();
        let settings = [
            ("OMNI_MAPPINGS", mappings.as_str()),
            ("OMNI_TRUST__CONVERTERS", "version-bridge"),
            ("OMNI_TRUST__PROXIES", PROXY),
        ];
        let turn = Turn::beside_others().await;
        let mut fleet = Fleet::empty(turn, Consul::start(ground).await, &settings).await;
        let bridge = match bridged {
            true => Some(fleet.serve("version-bridge", &[]).await),
            false => None,
        };
        let mut shops = Vec::new();
        for version in versions {
            shops.push(fleet.shop("shop", version).await);
        }
        Self { fleet, shops, bridge }
    }

    /// A way to call the shop, as an operator.
    async fn channel(&self) -> Channel {
        self.channel_as("operator").await
    }

    async fn channel_as(&self, party: &str) -> Channel {
        let config: Config = self.fleet.config();
        let registry = registry::registry(&config).unwrap();
        let identity = identity::authority(&config).unwrap().identity(party).await.unwrap();
        let policy = policy::policy(&config, &Default::default()).await.unwrap();
        let client = Client::new(identity, registry, policy, Default::default());
        client.channel("shop").await.unwrap()
    }

    /// What `omni` answers to `args`, which it does.
    fn omni(&self, args: &[&str]) -> String {
        self.omni_warns(args).0
    }

    /// As [`Market::omni`], and what it warns of.
    fn omni_warns(&self, args: &[&str]) -> (String, String) {
        let mut command: Command = self.fleet.command(&process::binary());
        let output = command.args(args).output().unwrap();
        let (out, err) =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).into();
        assert!(output.status.success(), "{args:?}: {out}{err}");
        eprintln!("omni {args:?}: {out}{err}");
        (out, err)
    }

    /// Has the rules count, in a process that watches them.
    async fn rule(&self, rules: &str) {
        let file = self.fleet.config().data.join("rules.toml");
        std::fs::write(&file, rules).unwrap();
        self.omni(&["routes", "set", "shop", &file.display().to_string()]);
    }
}

fn old_order(id: &str) -> v1::Order {
    v1::Order {
        id: id.to_owned(),
        customer: "Ada".to_owned(),
        street: "Main Street 1".to_owned(),
        city: "London".to_owned(),
        price: 12.5,
        status: v1::Status::Open.into(),
        items: vec![v1::Item { name: "pen".to_owned(), count: 3 }],
        payment: Some(Payment::Card("4242".to_owned())),
        ordered_at: 1_700_000_000,
        ..v1::Order::default()
    }
}

fn new_order(id: &str) -> v2::PurchaseOrder {
    v2::PurchaseOrder {
        id: id.to_owned(),
        buyer: Some(v2::Buyer {
            name: "Ada".to_owned(),
            address: Some(v2::Address {
                street: "Main Street 1".to_owned(),
                city: "London".to_owned(),
            }),
        }),
        price_cents: 1250,
        currency: "EUR".to_owned(),
        state: v2::State::Open.into(),
        items: vec![v2::Item { name: "pen".to_owned(), count: 3 }],
        payment: Some(v2::purchase_order::Payment::Card("4242".to_owned())),
        ordered_at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
        ..v2::PurchaseOrder::default()
    }
}

fn receipt(order_id: &str) -> v1::Receipt {
    v1::Receipt { order_id: order_id.to_owned(), at: None }
}

fn new_receipt(order_id: &str) -> v2::Receipt {
    v2::Receipt { order_id: order_id.to_owned(), at: None }
}

async fn all<T>(mut answers: tonic::Streaming<T>) -> Vec<T> {
    let mut all = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        all.push(answer);
    }
    all
}
