//! The command line, and the help that teaches it.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::{Args as ClapArgs, Parser, Subcommand};

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
    /// Run every service in this process, with a demo source to try
    Up(Up),
    /// Run some services in this process
    Serve(Serve),
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
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Up {
    /// The admin port: /readyz, /metrics, gRPC health [default: 9000]
    #[arg(long, value_name = "PORT")]
    pub(crate) admin_port: Option<u16>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Several processes on one data directory, or on one Consul, are one mesh:
  omni serve gateway & omni serve hook-receiver & omni serve audit &")]
pub(crate) struct Serve {
    /// The services: gateway, hook-receiver, audit, version-bridge
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
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

const RULES: &str = "\
A file of rules; the first one that matches a call counts:
  [[rules]]
  callers = [\"billing\"]             # any of these; whoever calls, unless given
  methods = [\"/shop.v1.Shop/*\"]     # any of these; all, unless given
  headers = { x-canary = \"yes\" }    # all of these
  to = [
      { version = \"^1.2\", weight = 95 },
      { version = \"=2.0.0\", weight = 5 },
  ]
  fallback = [\"^1\"]                 # where none of them has an instance

They count at once, in every process. A caller asks for a range itself by the header
omni-version; what counts then is what is in both.";

#[derive(Debug, Subcommand)]
#[command(after_help = RULES)]
pub(crate) enum RoutesCommand {
    /// Print the rules of a service as they were written, or list the services that have some
    Get(RoutesGet),
    /// Check rules and have them count from now on
    Set(RoutesSet),
    /// Check rules, and show which instances are in their ranges now
    Check(RoutesCheck),
    /// List the rules that counted before
    History(RoutesHistory),
    /// Have rules count that counted before
    Rollback(RoutesRollback),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RoutesGet {
    /// The service
    pub(crate) service: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = RULES)]
pub(crate) struct RoutesSet {
    /// The service
    pub(crate) service: String,
    /// The rules; `-` reads standard input, an empty file takes the rules back
    pub(crate) file: PathBuf,
    /// Set them as this operator
    #[arg(long = "as", default_value = "operator", value_name = "NAME")]
    pub(crate) operator: String,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = RULES)]
pub(crate) struct RoutesCheck {
    /// The service
    pub(crate) service: String,
    /// The rules; `-` reads standard input
    pub(crate) file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RoutesHistory {
    /// The service
    pub(crate) service: String,
    /// Print JSON, with the rules
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RoutesRollback {
    /// The service
    pub(crate) service: String,
    /// The revision, as `omni routes history` lists it [default: the one before]
    #[arg(long, value_name = "REVISION")]
    pub(crate) to: Option<u64>,
    /// Set them as this operator
    #[arg(long = "as", default_value = "operator", value_name = "NAME")]
    pub(crate) operator: String,
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

#[derive(Debug, Subcommand)]
pub(crate) enum EventsCommand {
    /// Print the events of a topic as they come
    Tail(EventsTail),
    /// List the topics
    Topics(Listing),
    /// Show how far each group of consumers has got
    #[command(visible_alias = "lag")]
    Groups(Listing),
    /// Tell the story of one correlation, over all topics
    Trace(EventsTrace),
    /// Bring a group the events of a topic that it hasn't handled, or all once more
    Replay(EventsReplay),
    /// Look at what consumers gave up on, and try it again
    #[command(subcommand)]
    Dlq(DlqCommand),
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  omni events tail hooks.demo --from-beginning
  omni events tail hooks.demo --since 10m --type push
  omni events tail hooks.demo --partition 3 --offset 1200 --limit 1
  omni events tail services.lifecycle --from-beginning --limit 5 --json | jq .")]
pub(crate) struct EventsTail {
    /// The topic
    pub(crate) topic: String,
    /// Begin with the first event that is kept, not with the next
    #[arg(long)]
    pub(crate) from_beginning: bool,
    /// Begin with events of this time: 10m, 2h, 1d ago, or 2026-11-21T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since, conflicts_with = "from_beginning")]
    pub(crate) since: Option<DateTime<Utc>>,
    /// Begin with the event at this place of one partition, and read no other
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["from_beginning", "since"])]
    pub(crate) offset: Option<i64>,
    /// The partition of --offset
    #[arg(long, value_name = "NUMBER", default_value_t = 0, requires = "offset")]
    pub(crate) partition: i32,
    #[command(flatten)]
    pub(crate) filter: EventFilter,
    /// Stop after so many events
    #[arg(long, short = 'n', value_name = "COUNT")]
    pub(crate) limit: Option<u64>,
    /// Print each event as a CloudEvent in JSON, on one line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct EventFilter {
    /// Only events of this type
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) kind: Option<String>,
    /// Only events of this source, such as /hooks/demo
    #[arg(long)]
    pub(crate) source: Option<String>,
    /// Only events of this correlation
    #[arg(long, value_name = "ID")]
    pub(crate) correlation_id: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Listing {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Example: post a webhook, and follow the correlation_id of its answer
  omni events trace 0198c0de-7000-7000-8000-000000000000")]
pub(crate) struct EventsTrace {
    /// The correlation id
    pub(crate) correlation_id: String,
    /// Print the events as CloudEvents in JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DlqCommand {
    /// List the dead letters
    List(DlqList),
    /// Print the letters of one event as CloudEvents in JSON
    Show(DlqShow),
    /// Publish letters to their topics once more; what was handled meanwhile isn't handled again
    Replay(DlqReplay),
    /// Take letters off the list without trying them again
    Discard(DlqDiscard),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DlqList {
    /// Only those of this topic, such as hooks.demo
    #[arg(long)]
    pub(crate) topic: Option<String>,
    /// Print them as CloudEvents in JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DlqShow {
    /// The event's id
    pub(crate) id: String,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  omni events dlq replay 0198c0de-7000-7000-8000-000000000000
  omni events dlq replay --all --topic hooks.demo --dry-run
  omni events dlq replay --all --yes")]
pub(crate) struct DlqReplay {
    #[command(flatten)]
    pub(crate) choice: DlqChoice,
    #[command(flatten)]
    pub(crate) consent: Consent,
    #[command(flatten)]
    pub(crate) rate: Rate,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  omni events dlq discard 0198c0de-7000-7000-8000-000000000000
  omni events dlq discard --all --topic hooks.demo --yes")]
pub(crate) struct DlqDiscard {
    #[command(flatten)]
    pub(crate) choice: DlqChoice,
    #[command(flatten)]
    pub(crate) consent: Consent,
}

/// Which letters.
#[derive(Debug, ClapArgs)]
pub(crate) struct DlqChoice {
    /// The ids of the events
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "ID")]
    pub(crate) ids: Vec<String>,
    /// All there are
    #[arg(long)]
    pub(crate) all: bool,
    /// Only those of this topic, such as hooks.demo
    #[arg(long)]
    pub(crate) topic: Option<String>,
}

/// Whether it is to be done.
#[derive(Debug, ClapArgs)]
pub(crate) struct Consent {
    /// Only say what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Don't ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Rate {
    /// How many events are published a second, at most
    #[arg(long, default_value_t = 1000, value_name = "EVENTS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rate: u32,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  omni events replay hooks.demo --group audit.hooks --dry-run
  omni events replay hooks.demo --group audit.hooks --from 2h --to 1h --again")]
pub(crate) struct EventsReplay {
    /// The topic
    pub(crate) topic: String,
    /// The group, as `omni events groups` lists it
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: String,
    /// Only events from this time on: 10m, 2h, 1d ago, or 2026-11-21T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub(crate) from: Option<DateTime<Utc>>,
    /// Only events from before this time
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub(crate) to: Option<DateTime<Utc>>,
    /// Also those that it has handled, whose effects it then has once more
    #[arg(long)]
    pub(crate) again: bool,
    #[command(flatten)]
    pub(crate) consent: Consent,
    #[command(flatten)]
    pub(crate) rate: Rate,
}

/// A time, or how long ago.
fn since(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.to_utc());
    }
    let ago = humantime::parse_duration(text).ok();
    ago.and_then(|ago| chrono::TimeDelta::from_std(ago).ok())
        .and_then(|ago| Utc::now().checked_sub_signed(ago))
        .ok_or_else(|| "expected a time such as 10m or 2026-11-21T12:00:00Z".to_owned())
}

#[derive(Debug, Subcommand)]
pub(crate) enum BridgeCommand {
    /// Prove a mapping against both versions, and tell what is lost
    Check(BridgeCheck),
    /// Compare two versions, and write a first mapping between them
    Propose(BridgePropose),
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  omni bridge check shop.toml --protos proto

Every field of a target must get a value or be named in `unset`, every field of a source
must be read or be named in `drop`, and every type must fit. What a message doesn't get
back from a conversion and its reverse is told as lossy. Exit status 1: it can't be used.")]
pub(crate) struct BridgeCheck {
    /// The mapping
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Where the versions are: a folder of .proto files, as `protoc -I` takes it, or a
    /// descriptor set; may be given several times
    #[arg(long, default_value = "proto", value_name = "PATH")]
    pub(crate) protos: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  omni bridge propose shop.v1 shop.v2 --protos proto > shop.toml
  omni bridge propose shop.v1 shop.v2 --protos old.binpb --protos new.binpb

The file begins with every change that breaks callers; what is a guess says so. What has
no counterpart is dropped, or unset: read it before you use it.")]
pub(crate) struct BridgePropose {
    /// The older package
    #[arg(value_name = "OLD")]
    pub(crate) old: String,
    /// The newer package
    #[arg(value_name = "NEW")]
    pub(crate) new: String,
    /// Where the versions are: a folder of .proto files, as `protoc -I` takes it, or a
    /// descriptor set; may be given several times
    #[arg(long, default_value = "proto", value_name = "PATH")]
    pub(crate) protos: Vec<PathBuf>,
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
