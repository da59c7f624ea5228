//! `omni`: runs the services of OmniBridge, and is their operators' tool.

mod args;
mod bridge;
mod call;
mod catalogue;
mod certs;
mod config;
mod coordinator;
mod events;
mod export;
mod hook;
mod host;
mod input;
mod operator;
mod output;
mod plan;
mod routes;
mod services;
mod up;
mod versions;

use std::process::ExitCode;

use clap::Parser as _;

use self::args::{Args, BridgeCommand, CertsCommand, Command, ConfigCommand, HookCommand};

/// Of all of the process, of what is written in C too: docs/decisions/021.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// All of the program `omni`, from its arguments to its exit code. Call it first thing
/// in a process: it makes the choices that a process makes once.
#[tokio::main]
pub async fn main() -> ExitCode {
    // Whatever crates are used, and whichever providers of TLS they bring.
    let installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    debug_assert!(installed.is_ok(), "nothing was installed before main");
    if let Err(why) = mesh::descriptors::add(api::DESCRIPTORS) {
        output::error(&why.into());
        return ExitCode::FAILURE;
    }
    let args = Args::parse();
    match run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            output::error(&why);
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let common = args.common;
    match args.command {
        Command::Up(up) => up::run(&common, &up).await,
        Command::Serve(serve) => host::serve(&common, &serve).await,
        command => {
            output::log_warnings();
            match command {
                Command::Up(_) | Command::Serve(_) => Ok(()),
                Command::Plan(args) => plan::run(&common, &args),
                Command::Status(args) => coordinator::status(&common, &args).await,
                Command::Restart(args) => coordinator::restart(&common, &args).await,
                Command::Drain(args) => coordinator::drain(&common, &args).await,
                Command::Scale(args) => coordinator::scale(&common, &args).await,
                Command::Services(args) => services::run(&common, &args).await,
                Command::Versions(args) => versions::run(&common, &args).await,
                Command::Routes(command) => routes::run(&common, &command).await,
                Command::Call(args) => call::run(&common, &args).await,
                Command::Hook(HookCommand::Send(args)) => hook::send(&common, &args).await,
                Command::Events(command) => events::run(&common, &command).await,
                Command::Bridge(BridgeCommand::Check(args)) => bridge::check(&args),
                Command::Bridge(BridgeCommand::Propose(args)) => bridge::propose(&args),
                Command::Certs(CertsCommand::Issue(args)) => certs::issue(&common, &args),
                Command::Certs(CertsCommand::Rotate) => certs::rotate(&common),
                Command::Config(ConfigCommand::Show(args)) => config::show(&common, &args),
                Command::Export(args) => export::run(&args),
            }
        }
    }
}
