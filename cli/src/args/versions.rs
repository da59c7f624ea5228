//! The commands about versions: which of them get the calls, and how they differ.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

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
