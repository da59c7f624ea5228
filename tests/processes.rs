//! `omni up --processes` on what needs nothing installed.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod children;

mod embedded {
    crate::children::on!(tests::Layout::Processes);
}
