//! The program `omni`; what it does is the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
