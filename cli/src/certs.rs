//! `omni certs`: certificates of the `dev` authority.

use anyhow::bail;
use mesh::{config::Config, identity::dev};

use crate::{
    args::{CertsIssue, Common},
    config,
    output::line,
};

/// The name that every command calls itself by, and where `up` leaves its
/// certificate.
pub(crate) const OPERATOR: &str = "operator";

/// The identity's name of the operator `name`.
pub(crate) fn operator(name: &str) -> String {
    if name == OPERATOR { OPERATOR.to_owned() } else { format!("{OPERATOR}-{name}") }
}

/// Issues a certificate and writes it with its key and the roots.
pub(crate) fn issue(common: &Common, args: &CertsIssue) -> anyhow::Result<()> {
    let config = dev_config(common)?;
    let name = if args.service { args.name.clone() } else { operator(&args.name) };
    let issued = dev::DevAuthority::open(&config)?.issue(&name)?;
    dev::write_issued(&issued, &args.out)?;
    line(&format!("{name}: cert.pem, key.pem and roots.pem are in {}", args.out.display()))
}

/// Makes a new root.
pub(crate) fn rotate(common: &Common) -> anyhow::Result<()> {
    dev::DevAuthority::open(&dev_config(common)?)?.rotate()?;
    line("a new root signs from now on; running services renew their certificates")
}

fn dev_config(common: &Common) -> anyhow::Result<Config> {
    let config = config::load(common, &[])?;
    if !config.identity.starts_with("dev:") {
        bail!(
            "the identity is `{}`: its own authority issues and rotates certificates \
             (`consul connect ca set-config` for Consul)",
            config.identity,
        );
    }
    Ok(config)
}
