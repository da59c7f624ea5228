//! The program `omni` as the tests of this package run it: built with them, so that no
//! older one can be taken for it.

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
