//! Versions of a service, side by side and converted, on everything that needs
//! nothing installed.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod versions;

mod embedded {
    crate::versions::on!(tests::ground::Ground::Embedded);
}

mod fake_consul {
    crate::versions::on!(tests::ground::Ground::FakeConsul);
}
