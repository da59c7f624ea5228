use std::{net::SocketAddr, path::PathBuf};

/// What can go wrong in the kernel, outside of a call. Calls answer with a
/// [`tonic::Status`], made in [`crate::status`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting can't be used.
    #[error("setting `{key}` = `{value}`: {cause}")]
    Setting {
        /// The setting's name, as in `omni.toml`.
        key: String,
        /// Its value, as given; masked where it is a secret.
        value: String,
        /// What is wrong with it and what would be right.
        cause: String,
    },
    /// The configuration as a whole can't be read.
    #[error("configuration: {0}")]
    Config(#[from] config::ConfigError),
    /// A file can't be read, written, watched or locked.
    #[error("{path}: {source}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An address can't be bound.
    #[error("{what} can't listen on {address}: {source}; set `{setting}` to a free port, or to 0")]
    Bind {
        /// What wanted to listen.
        what: String,
        /// Where.
        address: SocketAddr,
        /// The setting that says where.
        setting: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Descriptors that were handed in can't be used.
    #[error("descriptors: {0}")]
    Descriptors(String),
    /// An identity can't be made, read or renewed.
    #[error("identity: {0}")]
    Identity(String),
    /// The registry refused or can't be reached.
    #[error("registry: {0}")]
    Registry(String),
    /// Nobody can lead by this name, or it can't be told who does.
    #[error("leadership: {0}")]
    Leadership(String),
    /// The Consul agent refused or can't be reached.
    #[error("consul: {url}: {cause}")]
    Consul {
        /// What was asked.
        url: String,
        /// What went wrong and what to do.
        cause: String,
    },
    /// The policy can't be read.
    #[error("policy: {0}")]
    Policy(String),
    /// The database refused or can't be reached.
    #[error("database: {0}")]
    Database(#[from] sea_orm::DbErr),
    /// The transaction that the work shared with others was lost.
    #[error("database: nothing was committed: {0}")]
    NotCommitted(String),
    /// The database's files can't be used.
    #[error("database: {0}")]
    Store(String),
    /// The database's writer has stopped.
    #[error("database: the writer has stopped")]
    WriterStopped,
    /// The database's writer has as much waiting as it may.
    #[error("database: the writer's queue is full")]
    WriterFull,
    /// The outbox has reached its limit.
    #[error("outbox: `{limit}` is reached; {events} events of {bytes} bytes wait for the broker")]
    OutboxFull {
        /// How many events wait.
        events: u64,
        /// How many bytes their bodies have.
        bytes: u64,
        /// The setting that refuses more.
        limit: &'static str,
    },
    /// The broker refused or can't be reached.
    #[error("broker: {0}")]
    Broker(String),
    /// The broker is there, but doesn't take what is for this topic.
    #[error("broker: the topic `{topic}`: {cause}")]
    Topic {
        /// The topic.
        topic: String,
        /// Why, and what to do.
        cause: String,
    },
    /// An event of a version that can't be read here.
    #[error("event: it holds `{found}`, and only `{expected}` can be read here")]
    Schema {
        /// The message it holds.
        found: String,
        /// The one that can be read.
        expected: String,
    },
    /// An event of a version that can't be converted to one that can be read here.
    #[error("event: it holds `{found}`, which can't become `{expected}`: {cause}")]
    Conversion {
        /// The message it holds.
        found: String,
        /// The one that can be read.
        expected: String,
        /// Why.
        cause: String,
    },
    /// An event that can't be sent or read.
    #[error("event: {0}")]
    Event(String),
    /// Telemetry can't be set up.
    #[error("telemetry: {0}")]
    Telemetry(String),
}

impl Error {
    /// A setting that can't be used.
    pub fn setting(key: impl Into<String>, value: impl Into<String>, cause: impl ToString) -> Self {
        Self::Setting { key: key.into(), value: value.into(), cause: cause.to_string() }
    }

    /// Whether the same may work later, for it failed by no fault of its own: the
    /// database or the broker is away, or has no room.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Database(why) => crate::store::is_passing(why),
            Self::NotCommitted(_)
            | Self::WriterStopped
            | Self::WriterFull
            | Self::OutboxFull { .. }
            | Self::Broker(_)
            | Self::Topic { .. } => true,
            _ => false,
        }
    }

    /// Names the file an I/O error belongs to, for `map_err`.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
