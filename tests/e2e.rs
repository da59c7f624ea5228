//! The suite on everything that needs nothing installed: embedded in one
//! process, embedded in three, and on fakes that speak the real protocols.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod pools;
mod suite;

mod embedded_up {
    crate::suite::on!(tests::Layout::Up);
}

mod embedded_serve {
    crate::suite::on!(tests::Layout::Serve);
}

mod fakes {
    crate::suite::on!(tests::Layout::Fakes);
}
