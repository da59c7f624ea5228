//! `omni up`, with and without `--processes`, on what needs nothing installed.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[allow(dead_code, reason = "each target runs the tests that fit it")]
mod children;

mod embedded {
    crate::children::on!(tests::Layout::Processes);
    // Elsewhere the backends are among the units.
    crate::children::on! { tests::Layout::Processes; the_page_shows_what_a_reader_sees }
    crate::children::on! { tests::Layout::Up; nobody_has_to_read_what_up_prints }
}
