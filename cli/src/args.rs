//! The command line, and the help that teaches it.

mod coordinator;
mod events;
mod versions;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

pub(crate) use self::{coordinator::*, events::*, versions::*};

const EXAMPLES: &str = "\
Try it:
  omni up                                 run everything on this machine
  omni hook send demo payload.json        send a signed webhook
  omni events tail hooks.demo --from-beginning
  omni call omnibridge.hooks.v1.HookReceiver/ListHooks '{}'

Settings come from defaults, omni.toml, OMNI_* variables and flags, the later
one wins; `omni config show` shows each with its origin.

Exit status: 0 done, 1 failed, 2 wrong usage.";

/// A gRPC-first service mesh with Consul discovery.
#[derive(Debug, Parser)]
#[command(name = "omni", version, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, ClapArgs)]
pub(crate) struct Common {
    /// Where this machine's mesh keeps what it owns [default: .omni]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// The configuration file [default: omni.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run every service, with a demo source to try
    Up(Up),
    /// Run some services in this process
    Serve(Serve),
    /// Show in which order everything starts
    Plan(Plan),
    /// Show how everything is, and why
    Status(Status),
    /// Replace the instances of a service, one after the other
    Restart(OfUnit),
    /// End all instances of a service
    Drain(OfUnit),
    /// Have a number of instances of a service
    Scale(Scale),
    /// Show the instances that are registered, and whether they are healthy
    Services(Services),
    /// Show which versions of each service are there, and the packages they speak
    Versions(Listing),
    /// Say which versions of a service get its calls
    #[command(subcommand)]
    Routes(RoutesCommand),
    /// Call any method of any service, by its reflection
    Call(Call),
    /// Send webhooks
    #[command(subcommand)]
    Hook(HookCommand),
    /// Look at topics and their events
    #[command(subcommand)]
    Events(EventsCommand),
    /// Prove mappings between versions of a package, or write a first one
    #[command(subcommand)]
    Bridge(BridgeCommand),
    /// Issue certificates of the `dev` authority
    #[command(subcommand)]
    Certs(CertsCommand),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Write what Consul, compose, Prometheus and docs/ have to know of the services
    Export(Export),
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Services start in the order that `omni plan` shows, and `omni status` tells how they are.
What fails is tried again, and what depends on it waits or goes on without it. Ctrl-C drains
all of them in reverse; a second one ends them at once."
)]
pub(crate) struct Up {
    /// Run each service in a process of its own: one that crashes takes no other down,
    /// and is started again
    #[arg(long)]
    pub(crate) processes: bool,
    /// The admin port: /readyz, /metrics, gRPC health [default: 9000; with --processes 9006]
    #[arg(long, value_name = "PORT")]
    pub(crate) admin_port: Option<u16>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "In a checkout:
  omni export                  write all of it anew
  omni export --check          exit with 1 where a file differs
  omni export consul --dir /tmp/mesh    Consul's config entries, for `consul config write`")]
pub(crate) struct Export {
    /// What to write [default: all]
    #[arg(value_name = "WHAT")]
    pub(crate) what: Vec<Exported>,
    /// The folder that consul/, compose/ and docs/ are in
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Write nothing, and say what differs
    #[arg(long)]
    pub(crate) check: bool,
}

/// What the services' list is written for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Exported {
    /// The services of compose/compose.yaml
    Compose,
    /// Service defaults and intentions, in consul/
    Consul,
    /// The tables of docs/
    Docs,
    /// Where metrics are, in compose/prometheus/prometheus.yaml
    Prometheus,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Several processes on one data directory, or on one Consul, are one mesh:
  omni serve gateway & omni serve hook-receiver & omni serve audit &")]
pub(crate) struct Serve {
    #[arg(required = true, value_name = "NAME", help = crate::catalogue::help())]
    pub(crate) names: Vec<String>,
    /// Drain when standard input ends
    #[arg(long, hide = true)]
    pub(crate) with_parent: bool,
    /// The admin port [default: the first service's port + 1000]
    #[arg(long, value_name = "PORT")]
    pub(crate) admin_port: Option<u16>,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "With --wide a second table shows each called instance as its callers see it: whether it
is called (ready, ejected, unhealthy, unconnected), how long its calls take of late, how many
are in flight, and how many retries its service's calls have in store; and every breaker that
isn't closed. The callers tell that on their admin ports."
)]
pub(crate) struct Services {
    /// Show the instances as their callers see them, too
    #[arg(long)]
    pub(crate) wide: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  omni call omnibridge.hooks.v1.HookReceiver/ListHooks '{\"page_size\": 3}'
  omni call omnibridge.hooks.v1.HookReceiver/WatchHooks '{}'     # a stream: one answer a line
  echo '{\"id\": \"…\"}' | omni call omnibridge.hooks.v1.HookReceiver/GetHook -

The service is found in the registry by its package, its messages by reflection.")]
pub(crate) struct Call {
    /// PACKAGE.Service/Method
    #[arg(value_name = "METHOD")]
    pub(crate) method: String,
    /// The request as proto3 JSON; several, one after the other, are a stream;
    /// `-` reads them from standard input
    #[arg(default_value = "{}", value_name = "JSON")]
    pub(crate) request: String,
    /// Call this service, instead of the one that registered the package
    #[arg(long, value_name = "NAME")]
    pub(crate) service: Option<String>,
    /// Only call instances of these versions, such as ^1.2
    #[arg(long, value_name = "RANGE")]
    pub(crate) version: Option<semver::VersionReq>,
    /// Call as this operator, as `omni certs issue` names them
    #[arg(long = "as", default_value = "operator", value_name = "NAME")]
    pub(crate) operator: String,
    /// Call as this service, to see what it is allowed
    #[arg(long, conflicts_with = "operator", value_name = "NAME")]
    pub(crate) as_service: Option<String>,
    /// How long the answer may take, in seconds; streams have no limit
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
    /// Print each answer on one line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum HookCommand {
    /// Sign a file as its source would, and send it to the gateway
    Send(HookSend),
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "The source's scheme and secret come from [hooks.sources.SOURCE]; `omni up` makes
a source `demo`. Sending the same --delivery again is answered as a duplicate."
)]
pub(crate) struct HookSend {
    /// The source, as in [hooks.sources.SOURCE]
    pub(crate) source: String,
    /// The body; `-` reads standard input
    pub(crate) file: PathBuf,
    /// What happened
    #[arg(long = "type", default_value = "push", value_name = "TYPE")]
    pub(crate) kind: String,
    /// The delivery's id [default: a new one]
    #[arg(long, value_name = "ID")]
    pub(crate) delivery: Option<String>,
    /// The body's media type
    #[arg(long, default_value = "application/json", value_name = "TYPE")]
    pub(crate) content_type: String,
    /// The gateway's address [default: a registered one]
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// The API key, for a source of scheme `api-key`
    #[arg(long, env = "HOOK_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Listing {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CertsCommand {
    /// Issue a certificate for an operator, as cert.pem, key.pem and roots.pem
    Issue(CertsIssue),
    /// Make a new root; running services renew their certificates by themselves
    Rotate,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  omni certs issue ann --out ann
  grpcurl -cacert ann/roots.pem -cert ann/cert.pem -key ann/key.pem 127.0.0.1:8001 list")]
pub(crate) struct CertsIssue {
    /// The operator's name
    pub(crate) name: String,
    /// The folder to write to
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Issue for the service NAME, not for an operator
    #[arg(long)]
    pub(crate) service: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show every setting, where it came from, secrets masked
    Show(ConfigShow),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ConfigShow {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
