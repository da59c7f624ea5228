//! The commands about how everything starts, how it is, and what it is told to do.

use clap::Args as ClapArgs;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  omni plan
  omni plan --mermaid > plan.mmd

A level starts when the one before has settled: everything there is healthy, or has failed
once and is tried again. Exit status 1: there is no order, and why.")]
pub(crate) struct Plan {
    /// Print a flowchart of Mermaid
    #[arg(long, conflicts_with = "json")]
    pub(crate) mermaid: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  omni status                  a live table, until Ctrl-C
  omni status | grep -v ready  what isn't as it should be
  omni status --watch --json   each change on a line, for machines")]
pub(crate) struct Status {
    /// Go on where the output isn't a terminal, too: a line for each change
    #[arg(long, conflicts_with = "once")]
    pub(crate) watch: bool,
    /// Don't go on in a terminal either
    #[arg(long)]
    pub(crate) once: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct OfUnit {
    /// The service
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Scale {
    /// The service
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// How many instances, 1 to 32
    #[arg(value_name = "COUNT", value_parser = clap::value_parser!(i32).range(1..=32))]
    pub(crate) count: i32,
}
