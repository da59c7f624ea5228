//! What a service is, and its life: migrate, start, ready, drain, stop.
//!
//! ```text
//!  started ──▶ ready ──▶ draining ──▶ stopped
//!     │                                  ▲
//!     └────────── can't start ───────────┘
//! ```
//!
//! Draining goes in this order, so that no call fails: unready, deregistered,
//! what is in flight finished, the outbox flushed, stopped.

mod context;
mod denials;
mod lifecycle;
mod process;
mod run;

use std::fmt;

use async_trait::async_trait;
use prost_types::FileDescriptorSet;
use serde::Serialize;
use tonic::service::Routes;

pub use self::{context::Context, process::Process};
use crate::{
    Error,
    events::Bodies,
    policy::{Declared, Trust},
    store::Migrations,
};

/// The capability of a service that serves HTTP for the outside.
pub const HTTP: &str = "http";

/// How much higher a service's admin port is than its own, unless they are set.
pub const ADMIN_OFFSET: u16 = 1000;

/// A service, as the kernel sees it.
#[async_trait]
pub trait Service: Send + Sync + 'static {
    /// What it is. Asked before anything is started, for all services.
    fn descriptor(&self) -> Descriptor;

    /// Builds what it serves, and spawns its tasks by the context. It isn't
    /// reachable before this returns.
    ///
    /// # Errors
    /// When it can't work; the process says so and stops.
    async fn start(&self, context: &Context) -> Result<Surface, Error>;
}

/// What a service is.
#[derive(Clone, Debug)]
pub struct Descriptor {
    /// Its name: 1 to 63 of `a-z`, `0-9` and `-`; its identity, and its key in
    /// the configuration.
    pub name: &'static str,
    /// Its semantic version.
    pub version: &'static str,
    /// Where it listens, unless `services.NAME.port` says otherwise: the mesh port, or the
    /// port for HTTP. Its admin port is 1000 more, when it has a process of its own. A
    /// free one where this is `None`.
    pub port: Option<u16>,
    /// The section of the configuration that is its own.
    pub section: Option<&'static str>,
    /// When it starts, roughly.
    pub phase: Phase,
    /// Whom it speaks for.
    pub role: Role,
    /// The services it can't work without: it starts after them. These calls are
    /// allowed unless an intention says otherwise.
    pub dependencies: &'static [&'static str],
    /// The services that it calls too, but works without: it starts after them, and
    /// doesn't wait for them. These calls are allowed as well.
    pub optional: &'static [&'static str],
    /// The encoded `google.protobuf.FileDescriptorSet` of what it serves and of what it
    /// calls, imports included; empty where that is nothing.
    pub descriptors: &'static [u8],
    /// The gRPC services it serves, by the generated `SERVICE_NAME`s.
    pub grpc_services: &'static [&'static str],
    /// What else it can do, such as `http`.
    pub capabilities: &'static [&'static str],
    /// What makes the tables of its own, beside outbox and inbox.
    pub migrations: Option<Migrations>,
    /// Where it stores the bodies of its events itself.
    pub bodies: Option<Bodies>,
}

/// Whom a service speaks for. That is how it is meant: it may do so where its name is
/// trusted, by the program whose list it is in or by the setting `trust`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Itself.
    Ordinary,
    /// Others, whose calls it forwards under their names.
    Proxy,
    /// Others, whose calls it converts between versions.
    Converter,
}

/// When a service starts, roughly: a phase begins when the one before has settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// What everything else stands on.
    Infrastructure,
    /// What learns, and what others ask for advice.
    Intelligence,
    /// What does the work.
    Services,
    /// What has others work together.
    Coordination,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// What a service serves.
pub enum Surface {
    /// gRPC on a mesh port, of what its descriptors have.
    Grpc(Routes),
    /// gRPC on a mesh port, of what is known only now.
    Dynamic {
        /// What answers.
        routes: Routes,
        /// What reflection tells of it.
        descriptors: FileDescriptorSet,
        /// The services that reflection lists.
        services: Vec<String>,
    },
    /// HTTP for the outside.
    Http(axum::Router),
}

/// The settings that the services of a program's own list declare, in the form of
/// `omni.toml`: their ports.
pub fn defaults(list: &[Descriptor]) -> String {
    let with_port = list.iter().filter_map(|d| Some((d.name, d.port?)));
    let ports = with_port.map(|(name, port)| {
        // A free one, where there is none so much higher.
        let admin_port = port.checked_add(ADMIN_OFFSET).unwrap_or(0);
        format!("[services.{name}]\nport = {port}\nadmin_port = {admin_port}\n")
    });
    ports.collect()
}

/// What the services of a program's own list declare: whom they call, which of them are
/// trusted to speak for others, and their descriptors.
pub fn declared(list: &[Descriptor]) -> Declared {
    let calls = list.iter().flat_map(|descriptor| {
        descriptor.called().map(|called| (descriptor.name.to_owned(), called.to_owned()))
    });
    let of_role = |role: Role| {
        list.iter().filter(move |d| d.role == role).map(|d| d.name.to_owned()).collect()
    };
    let trust = Trust { proxies: of_role(Role::Proxy), converters: of_role(Role::Converter) };
    let mut descriptors: Vec<&'static [u8]> = list.iter().map(|d| d.descriptors).collect();
    descriptors.sort_unstable();
    descriptors.dedup();
    Declared { calls: calls.collect(), trust, descriptors }
}

impl Descriptor {
    /// Whether it has a database: outbox, inbox and its own tables. Only a service that
    /// serves HTTP and has no migrations has none.
    pub fn has_database(&self) -> bool {
        self.migrations.is_some() || !self.capabilities.contains(&HTTP)
    }

    /// The services it calls: those it can't work without, and the others.
    pub fn called(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.dependencies.iter().chain(self.optional).copied()
    }

    /// The Protobuf packages it serves.
    pub fn packages(&self) -> Vec<String> {
        let packages = self.grpc_services.iter().filter_map(|service| service.rsplit_once('.'));
        let mut packages: Vec<String> = packages.map(|(package, _)| package.to_owned()).collect();
        packages.dedup();
        packages
    }
}
