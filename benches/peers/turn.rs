//! One contestant's turn: its processes are started, warmed up, put under both
//! loads, and ended.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::Context as _;
use benches::machine::{self, Others};

use crate::{
    Stack, envoy,
    load::{Load, Outcome},
    party::{Hops, Party},
};

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contestant {
    Tonic,
    TonicMtls,
    Mesh,
    EnvoyPair,
    EnvoyHop,
    Bridge,
    Converting,
}

impl Contestant {
    pub(crate) const ALL: [Self; 7] = [
        Self::Tonic,
        Self::TonicMtls,
        Self::Mesh,
        Self::EnvoyPair,
        Self::EnvoyHop,
        Self::Bridge,
        Self::Converting,
    ];

    /// What people call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tonic => "tonic, plain",
            Self::TonicMtls => "tonic, mTLS",
            Self::Mesh => "mesh, everything on",
            Self::EnvoyPair => "pair of Envoys, mTLS",
            Self::EnvoyHop => "one Envoy, plain",
            Self::Bridge => "version-bridge",
            Self::Converting => "version-bridge, converting",
        }
    }

    /// What its client is made of.
    fn client(self) -> Stack {
        match self {
            Self::Tonic | Self::EnvoyPair | Self::EnvoyHop => Stack::Tonic,
            Self::TonicMtls | Self::Bridge => Stack::TonicMtls,
            Self::Converting => Stack::Older,
            Self::Mesh => Stack::Mesh,
        }
    }

    /// What its server is made of.
    fn server(self) -> Stack {
        match self {
            Self::Tonic | Self::EnvoyPair | Self::EnvoyHop => Stack::Tonic,
            Self::TonicMtls => Stack::TonicMtls,
            Self::Mesh | Self::Bridge | Self::Converting => Stack::Mesh,
        }
    }
}

/// What all turns share.
pub(crate) struct Stage<'s> {
    /// The Envoy to run.
    pub(crate) envoy: &'s Path,
    /// Where the CA, the registry and so on are.
    pub(crate) data: &'s Path,
    /// Where traces go.
    pub(crate) traces: &'s str,
    /// How long each load is kept up.
    pub(crate) closed: Duration,
    pub(crate) open: Duration,
    pub(crate) warm_up: Duration,
}

/// A number for the client, the server, and the hops between them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shares {
    pub(crate) client: f64,
    pub(crate) server: f64,
    pub(crate) hops: f64,
}

impl Shares {
    pub(crate) fn sum(self) -> f64 {
        self.client + self.server + self.hops
    }
}

/// What a turn showed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    /// Calls a second in the closed loop.
    pub(crate) throughput: f64,
    /// Microseconds of processor time a call in the closed loop.
    pub(crate) cpu_closed: Shares,
    /// Latencies of the open loop in milliseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    /// Microseconds of processor time a call in the open loop.
    pub(crate) cpu_open: Shares,
    /// Mebibytes resident after both.
    pub(crate) resident: Shares,
    /// The largest share of the machine that others took meanwhile, 0 to 1.
    pub(crate) others: f64,
}

impl Stage<'_> {
    /// Lets `contestant` have its turn.
    ///
    /// # Errors
    /// When a process can't be started, or a call fails.
    pub(crate) async fn turn(&self, contestant: Contestant) -> anyhow::Result<Figures> {
        let mut server = self.party("serve", Some(contestant.server()), None)?;
        let hops = self.hops(contestant, server.heard().await?).await?;
        let mut client = self.party("load", Some(contestant.client()), Some(hops.address))?;
        client.heard::<String>().await?;

        let mut processes = Processes { client, server, hops: hops.parties };
        processes.under(Load::Closed(self.warm_up)).await?;
        let closed = processes.under(Load::Closed(self.closed)).await?;
        let open = processes.under(Load::Open(self.open)).await?;
        let latency = open.outcome.latency.context("the open loop has latencies")?;
        let resident = processes.resident()?;
        processes.end().await?;

        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        Ok(Figures {
            throughput: f64::from(closed.outcome.calls) / closed.outcome.elapsed.as_secs_f64(),
            cpu_closed: closed.cpu,
            p50: millis(latency.p50),
            p99: millis(latency.p99),
            p999: millis(latency.p999),
            cpu_open: open.cpu,
            resident,
            others: closed.others.max(open.others),
        })
    }

    /// What `contestant` has on the way to its server at `to`.
    async fn hops(&self, contestant: Contestant, to: SocketAddr) -> anyhow::Result<Hops> {
        match contestant {
            Contestant::Tonic | Contestant::TonicMtls | Contestant::Mesh => {
                Ok(Hops { address: to, parties: Vec::new() })
            }
            Contestant::EnvoyPair => envoy::pair(self.envoy, self.data, to).await,
            Contestant::EnvoyHop => envoy::single(self.envoy, self.data, to).await,
            Contestant::Bridge | Contestant::Converting => {
                // It isn't told where the server is: it finds it by itself.
                let mut bridge = self.party("bridge", None, None)?;
                Ok(Hops { address: bridge.heard().await?, parties: vec![bridge] })
            }
        }
    }

    /// This program again, in another role.
    fn party(
        &self,
        role: &str,
        stack: Option<Stack>,
        to: Option<SocketAddr>,
    ) -> anyhow::Result<Party> {
        use clap::ValueEnum as _;
        let program = std::env::current_exe()?;
        let stack = stack.and_then(|stack| stack.to_possible_value());
        let (data, to) = (self.data.display().to_string(), to.map(|to| to.to_string()));
        let mut args = vec![role, "--data", &data, "--traces", self.traces];
        args.extend(stack.iter().map(|stack| stack.get_name()));
        args.extend(to.iter().flat_map(|to| ["--to", to]));
        Party::start(&program, &args)
    }
}

/// A load and what it took.
struct Measured {
    outcome: Outcome,
    /// Microseconds a call.
    cpu: Shares,
    others: f64,
}

struct Processes {
    client: Party,
    server: Party,
    hops: Vec<Party>,
}

impl Processes {
    async fn under(&mut self, load: Load) -> anyhow::Result<Measured> {
        let (Load::Closed(time) | Load::Open(time)) = load;
        let pids = self.hops.iter().chain([&self.client, &self.server]).map(Party::pid);
        let others = Others::watch(pids.collect::<anyhow::Result<_>>()?)?;
        let before = self.cpu()?;
        let outcome: Outcome = self.client.ask(&load, time).await?;
        let after = self.cpu()?;
        let a_call = |before: f64, after: f64| (after - before) * 1e6 / f64::from(outcome.calls);
        let cpu = Shares {
            client: a_call(before.client, after.client),
            server: a_call(before.server, after.server),
            hops: a_call(before.hops, after.hops),
        };
        Ok(Measured { outcome, cpu, others: others.share()? })
    }

    /// Seconds of processor time so far.
    fn cpu(&self) -> anyhow::Result<Shares> {
        self.shares(|pid| Ok(machine::cpu_of(pid)?.as_secs_f64()))
    }

    /// Mebibytes in memory.
    fn resident(&self) -> anyhow::Result<Shares> {
        // No process has 2^53 bytes.
        #[allow(clippy::cast_precision_loss)]
        self.shares(|pid| Ok(machine::resident_of(pid)? as f64 / f64::from(1 << 20)))
    }

    fn shares(&self, of: impl Fn(u32) -> anyhow::Result<f64>) -> anyhow::Result<Shares> {
        Ok(Shares {
            client: of(self.client.pid()?)?,
            server: of(self.server.pid()?)?,
            // Not by sum(): of nothing, that is -0.
            hops: self.hops.iter().try_fold(0.0, |sum, hop| anyhow::Ok(sum + of(hop.pid()?)?))?,
        })
    }

    /// Ends all, callers first.
    async fn end(self) -> anyhow::Result<()> {
        let Self { client, server, hops } = self;
        client.end().await?;
        for hop in hops {
            hop.end().await?;
        }
        server.end().await
    }
}
