//! How a mesh is laid out: which backends, and how many processes.

/// One of the layouts that the one suite runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `omni up`: one process, embedded backends.
    Up,
    /// `omni serve`: three processes on one data directory.
    Serve,
    /// Three processes on a fake Consul and librdkafka's mock of Kafka.
    Fakes,
    /// Three processes on the real Consul, Kafka, PostgreSQL and Jaeger that
    /// the environment names.
    Real,
    /// `omni up --processes`: a process for each service, on one data directory.
    Processes,
    /// As [`Layout::Processes`], on the backends of [`Layout::Real`].
    RealProcesses,
}

impl Layout {
    /// The processes, by the services each one runs.
    pub fn processes(self) -> &'static [&'static str] {
        match self {
            Self::Up | Self::Processes | Self::RealProcesses => &["up"],
            Self::Serve | Self::Fakes | Self::Real => &["hook-receiver", "audit", "gateway"],
        }
    }

    /// The process that runs `service`.
    pub fn process_of(self, service: &'static str) -> &'static str {
        match self {
            Self::Up | Self::Processes | Self::RealProcesses => "up",
            Self::Serve | Self::Fakes | Self::Real => service,
        }
    }
}
