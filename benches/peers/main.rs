//! The mesh side by side with its peers, in one session: plain tonic, tonic with
//! mutual TLS, and a pair of Envoy hops with mutual TLS; and version-bridge as the
//! one hop, beside one Envoy in the clear. `just peers` runs it.
//!
//! Every contestant is a client's and a server's process (this program again, as
//! `load` and `serve`), and the hops between them, if it has any: Envoys, or
//! version-bridge (this program, as `bridge`). All have the same method of the API
//! called with the same body over as many connections, one of them by way of an
//! older package, and rounds go over all contestants, so that what changes on the
//! machine meanwhile meets all of them.
//!
//! In reading order: [`contest`], [`turn`], [`party`], [`load`], [`client`],
//! [`server`], [`meshed`], [`older`], [`bridge`], [`envoy`], [`collector`],
//! [`report`].

mod bridge;
mod client;
mod collector;
mod contest;
mod envoy;
mod load;
mod meshed;
mod older;
mod party;
mod report;
mod server;
mod turn;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};

/// As `omni` has it: docs/decisions/021. All contestants but Envoy, which has an
/// allocator of its own, run in this program.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How many connections a client has to what it calls, whoever it is.
const CONNECTIONS: usize = 16;
/// How much a request and an answer carry.
const MESSAGE_BYTES: usize = 1024;
/// How many calls the closed loop keeps in flight.
const IN_FLIGHT: usize = 32;
/// How many calls a second the open loop begins.
const RATE: u32 = 1000;

/// Runs the mesh side by side with tonic and Envoy.
#[derive(Parser)]
#[command(name = "peers")]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    contest: contest::Settings,
}

/// What this process is where it isn't the contest itself.
#[derive(Subcommand)]
enum Role {
    /// Serves until its input ends.
    #[command(hide = true)]
    Serve {
        /// How.
        stack: Stack,
        #[command(flatten)]
        place: Place,
    },
    /// Passes calls on until its input ends, converted where that has to be.
    #[command(hide = true)]
    Bridge {
        #[command(flatten)]
        place: Place,
    },
    /// Makes the load that each line of its input asks for.
    #[command(hide = true)]
    Load {
        /// How.
        stack: Stack,
        /// Whom to call; the mesh finds it by itself.
        #[arg(long)]
        to: SocketAddr,
        #[command(flatten)]
        place: Place,
    },
}

/// What every role is told.
#[derive(clap::Args)]
struct Place {
    /// Where the CA, the registry and so on are.
    #[arg(long)]
    data: PathBuf,
    /// Where traces go.
    #[arg(long)]
    traces: String,
}

/// What a client or a server is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stack {
    /// tonic in the clear.
    Tonic,
    /// tonic with mutual TLS.
    TonicMtls,
    /// The same in the older package; only clients are.
    Older,
    /// The mesh.
    Mesh,
}

#[tokio::main]
async fn main() -> ExitCode {
    // Several of the crates used bring a provider; rustls wants one chosen. It
    // fails where one is chosen already, and then there is one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    mesh::descriptors::add(api::DESCRIPTORS).expect("they are ours");
    let Args { role, contest } = Args::parse();
    let ended = match role {
        None => contest::run(contest).await,
        Some(Role::Serve { stack, place }) => server::run(stack, &place.data, &place.traces).await,
        Some(Role::Bridge { place }) => bridge::run(&place.data, &place.traces).await,
        Some(Role::Load { stack, to, place }) => {
            client::run(stack, to, &place.data, &place.traces).await
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("peers: error: {why:#}");
            ExitCode::FAILURE
        }
    }
}
