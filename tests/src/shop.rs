//! A service of the tests' own, in two versions that speak genuinely different
//! messages: the shop of `convert/tests/shop`, where its mapping is.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, LazyLock, Mutex},
};

use async_trait::async_trait;
use futures::{Stream, StreamExt as _, stream};
use mesh::{
    Error,
    call::Call,
    config::Config,
    events::{Attributes, Event, Handler, Outbox, Outgoing},
    policy::Declared,
    service::{Context, Descriptor, Phase, Process, Role, Service, Surface},
    status::InvalidField,
    telemetry::Telemetry,
};
use prost_reflect::{DescriptorPool, DynamicMessage};
use sea_orm::DatabaseTransaction;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, service::Routes};

/// What the two versions generate.
#[allow(missing_docs, reason = "their .proto files say it")]
pub mod proto {
    pub mod v1 {
        tonic::include_proto!("shop.v1");
    }
    pub mod v2 {
        tonic::include_proto!("shop.v2");
    }
}

/// An order with this id is never answered.
pub const SLOW: &str = "slow";
/// The header that an answer gives back.
pub const ECHO: &str = "x-echo";
/// The header of an answer that says who calls.
pub const CALLER: &str = "x-caller";
/// Who may call it, beside operators.
pub const CALLER_OF_SHOPS: &str = "front-door";
/// What it prints when a caller gives up waiting.
pub const GIVEN_UP: &str = "given up";

/// The topic of what was bought.
pub const TOPIC: &str = "shop.orders";

/// What it does for both versions.
struct Shop<O> {
    version: &'static str,
    outbox: Outbox,
    bought: Mutex<Vec<O>>,
}

/// An order of either version.
trait Order: prost::Message + Clone + Send + Sync + 'static {
    /// Its full name.
    const NAME: &'static str;
    fn id(&self) -> &str;
    fn sent(self) -> Self;
}

impl Order for proto::v1::Order {
    const NAME: &'static str = "shop.v1.Order";

    fn id(&self) -> &str {
        &self.id
    }

    fn sent(mut self) -> Self {
        self.set_status(proto::v1::Status::Sent);
        self
    }
}

impl Order for proto::v2::PurchaseOrder {
    const NAME: &'static str = "shop.v2.PurchaseOrder";

    fn id(&self) -> &str {
        &self.id
    }

    fn sent(mut self) -> Self {
        self.set_state(proto::v2::State::Sent);
        self
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Says that somebody gave up waiting, when it is dropped.
struct Patience;

impl Drop for Patience {
    fn drop(&mut self) {
        println!("{GIVEN_UP}");
    }
}

impl<O: Order> Shop<O> {
    fn new(version: &'static str, outbox: Outbox) -> Self {
        Self { version, outbox, bought: Mutex::default() }
    }

    /// Publishes that it was bought.
    async fn tell(&self, order: &O) -> Result<(), Error> {
        let event = Outgoing::new(TOPIC, event(order));
        let outbox = self.outbox.clone();
        self.outbox
            .store()
            .transaction(move |tx| Box::pin(async move { outbox.add(tx, vec![event]).await }))
            .await
    }

    async fn buy(&self, order: O) -> Result<String, Status> {
        if order.id().is_empty() {
            return Err(InvalidField::new("id", "is empty").into());
        }
        if order.id() == SLOW {
            let _waiting = Patience;
            std::future::pending::<()>().await;
        }
        let id = order.id().to_owned();
        self.tell(&order).await?;
        self.bought.lock().expect("nobody panics").push(order);
        Ok(id)
    }

    async fn buy_all(&self, mut orders: Streaming<O>) -> Result<String, Status> {
        let mut ids = Vec::new();
        while let Some(order) = orders.message().await? {
            ids.push(self.buy(order).await?);
        }
        Ok(ids.join(","))
    }

    /// What was bought, and then nothing, for as long as somebody waits.
    fn list(&self, of: &str) -> Answers<O> {
        let bought = self.bought.lock().expect("nobody panics").clone();
        let bought = stream::iter(bought.into_iter().map(Ok));
        if of != SLOW {
            return Box::pin(bought);
        }
        let patience = Patience;
        let rest = stream::once(async move {
            let _waiting = patience;
            std::future::pending().await
        });
        Box::pin(bought.chain(rest))
    }

    fn trade(orders: Streaming<O>) -> Answers<O> {
        Box::pin(orders.map(|order| Ok(order?.sent())))
    }
}

/// The descriptors of both versions.
static DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/shop.binpb"));
static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(DESCRIPTORS).expect("it was encoded"));

fn event<O: Order>(order: &O) -> Event {
    let descriptor = POOL.get_message_by_name(O::NAME).expect("it has this message");
    let message = DynamicMessage::decode(descriptor, &*order.encode_to_vec());
    let json = serde_json::to_vec(&message.expect("it is one")).expect("it has a form in JSON");
    let attributes = Attributes {
        id: crate::mesh::new_id(),
        source: "/services/shop".to_owned(),
        kind: O::NAME.to_owned(),
        subject: String::new(),
        time: chrono::Utc::now(),
        datacontenttype: "application/json".to_owned(),
        dataschema: O::NAME.to_owned(),
        correlationid: order.id().to_owned(),
        causationid: String::new(),
        traceparent: String::new(),
        extensions: BTreeMap::new(),
    };
    Event { attributes, data: json.into() }
}

fn echo<Q, A>(request: &Request<Q>, answer: A) -> Response<A> {
    let mut response = Response::new(answer);
    if let Some(value) = request.metadata().get(ECHO) {
        response.metadata_mut().insert(ECHO, value.clone());
    }
    if let Some(caller) = &Call::current().caller {
        let name = caller.name().parse().expect("it is ASCII");
        response.metadata_mut().insert(CALLER, name);
    }
    response
}

macro_rules! serve {
    ($version:ident, $order:ident, $buy:ident $(, $refused:ident)?) => {
        #[async_trait]
        impl proto::$version::shop_server::Shop for Shop<proto::$version::$order> {
            type ListStream = Answers<proto::$version::$order>;
            type TradeStream = Answers<proto::$version::$order>;
            type FollowStream = Answers<proto::$version::Receipt>;

            async fn $buy(
                &self,
                request: Request<proto::$version::$order>,
            ) -> Result<Response<proto::$version::Receipt>, Status> {
                let order_id = self.buy(request.get_ref().clone()).await?;
                Ok(echo(&request, proto::$version::Receipt { order_id, at: None }))
            }

            async fn buy_all(
                &self,
                request: Request<Streaming<proto::$version::$order>>,
            ) -> Result<Response<proto::$version::Receipt>, Status> {
                let order_id = Shop::buy_all(self, request.into_inner()).await?;
                Ok(Response::new(proto::$version::Receipt { order_id, at: None }))
            }

            async fn list(
                &self,
                request: Request<proto::$version::Receipt>,
            ) -> Result<Response<Self::ListStream>, Status> {
                let bought = Shop::list(self, &request.get_ref().order_id);
                Ok(echo(&request, bought))
            }

            async fn trade(
                &self,
                request: Request<Streaming<proto::$version::$order>>,
            ) -> Result<Response<Self::TradeStream>, Status> {
                Ok(Response::new(Self::trade(request.into_inner())))
            }

            async fn follow(
                &self,
                request: Request<proto::$version::Receipt>,
            ) -> Result<Response<Self::FollowStream>, Status> {
                let mut receipt = request.into_inner();
                if receipt.order_id.is_empty() {
                    self.version.clone_into(&mut receipt.order_id);
                }
                let receipts = stream::iter([Ok(receipt)]);
                Ok(Response::new(Box::pin(receipts)))
            }

            $(async fn $refused(
                &self,
                _: Request<proto::$version::$order>,
            ) -> Result<Response<proto::$version::Receipt>, Status> {
                Err(Status::unimplemented("not today"))
            })?
        }
    };
}

serve!(v1, Order, buy, haggle);
serve!(v2, PurchaseOrder, purchase);

/// The service `shop`, in one of its versions.
struct Version(&'static str);

impl Version {
    fn is_old(&self) -> bool {
        self.0.starts_with("1.")
    }
}

#[async_trait]
impl Service for Version {
    fn descriptor(&self) -> Descriptor {
        use proto::{v1, v2};
        Descriptor {
            name: "shop",
            version: self.0,
            port: None,
            section: None,
            phase: Phase::Services,
            role: Role::Ordinary,
            dependencies: &[],
            optional: &[],
            descriptors: DESCRIPTORS,
            grpc_services: match self.is_old() {
                true => &[v1::shop_server::SERVICE_NAME],
                false => &[v2::shop_server::SERVICE_NAME],
            },
            capabilities: &[],
            migrations: None,
            bodies: None,
        }
    }

    async fn start(&self, context: &Context) -> Result<Surface, Error> {
        use proto::{v1, v2};
        let outbox = context.outbox()?.clone();
        let routes = match self.is_old() {
            true => Routes::new(v1::shop_server::ShopServer::new(Shop::<v1::Order>::new(
                self.0, outbox,
            ))),
            false => Routes::new(v2::shop_server::ShopServer::new(Shop::<v2::PurchaseOrder>::new(
                self.0, outbox,
            ))),
        };
        Ok(Surface::Grpc(routes))
    }
}

/// A service that prints what was bought, in the version of its own.
struct Ledger {
    name: &'static str,
    reads: [&'static str; 1],
}

#[async_trait]
impl Service for Ledger {
    fn descriptor(&self) -> Descriptor {
        Descriptor {
            name: self.name,
            version: "1.0.0",
            port: None,
            section: None,
            phase: Phase::Services,
            role: Role::Ordinary,
            dependencies: &[],
            optional: &[],
            descriptors: DESCRIPTORS,
            grpc_services: &[],
            capabilities: &[],
            migrations: None,
            bodies: None,
        }
    }

    async fn start(&self, context: &Context) -> Result<Surface, Error> {
        context.subscribe(TOPIC, Arc::new(Heard(self.reads)))?;
        Ok(Surface::Grpc(Routes::default()))
    }
}

struct Heard([&'static str; 1]);

#[async_trait]
impl Handler for Heard {
    async fn handle(&self, _: &DatabaseTransaction, _: &str, event: &Event) -> Result<(), Error> {
        let json: serde_json::Value =
            serde_json::from_slice(&event.data).map_err(|why| Error::Event(why.to_string()))?;
        let Attributes { kind, dataschema, .. } = &event.attributes;
        println!("heard {kind} {dataschema} {json}");
        Ok(())
    }

    fn reads(&self) -> &[&str] {
        &self.0
    }
}

/// Runs the shop in this version, `1.…` or `2.…`, or one that hears of what it sells,
/// `ledger-old` or `ledger-new`, as `omni serve` runs services.
///
/// # Errors
/// When it can't be started.
///
/// # Panics
/// When it can't listen to signals.
pub async fn serve(which: &'static str) -> Result<(), Error> {
    let service: Arc<dyn Service> = match which {
        "ledger-old" => Arc::new(Ledger { name: which, reads: [proto::v1::Order::NAME] }),
        "ledger-new" => Arc::new(Ledger { name: which, reads: [proto::v2::PurchaseOrder::NAME] }),
        version => Arc::new(Version(version)),
    };
    let config = Config::load("", None, &[])?;
    let telemetry = Telemetry::start(&config)?.into();
    let mut term = signal(SignalKind::terminate()).expect("signals can be listened to");
    let calls = vec![(CALLER_OF_SHOPS.to_owned(), "shop".to_owned())];
    let descriptors = vec![DESCRIPTORS];
    let declared = Declared { calls, descriptors, ..Declared::default() };
    let process = Arc::new(Process::start(Arc::new(config), telemetry, &declared, 0).await?);
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        term.recv().await;
        stopped.cancel();
    });
    let (ready, is_ready) = oneshot::channel();
    let name = service.descriptor().name;
    let told = async {
        if let Ok(address) = is_ready.await {
            println!("{name} is ready at {address}");
        }
    };
    let (outcome, ()) = tokio::join!(process.run(service, ready, stop), told);
    process.stop().await;
    outcome
}

/// The folder of its versions and of their mapping.
pub fn mappings() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../convert/tests/shop"))
}
