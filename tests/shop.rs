//! `shop VERSION`: the service of the tests of versions; see [`tests::shop`].

use std::process::ExitCode;

use rustls::crypto::aws_lc_rs;

#[tokio::main]
async fn main() -> ExitCode {
    // The first of this process.
    let _ = aws_lc_rs::default_provider().install_default();
    let Some(version) = std::env::args().nth(1) else {
        eprintln!("which version?");
        return ExitCode::from(2);
    };
    match tests::shop::serve(version.leak()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
