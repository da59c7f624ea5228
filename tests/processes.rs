//! `omni up --processes` on what needs nothing installed.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod children;

mod embedded {
    crate::children::on!(tests::Layout::Processes);
    // Elsewhere the backends are among the units.
    crate::children::on! { tests::Layout::Processes; the_page_shows_what_a_reader_sees }
}
