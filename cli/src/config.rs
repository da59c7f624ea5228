//! `omni config`: the configuration as it is effective.

use mesh::config::Config;

use crate::{
    args::{Common, ConfigShow},
    catalogue,
    output::{self, Table},
};

/// Loads the configuration, `flags` over all of it.
pub(crate) fn load(common: &Common, flags: &[(&str, String)]) -> anyhow::Result<Config> {
    let mut all: Vec<(&str, String)> = Vec::new();
    if let Some(data) = &common.data {
        all.push(("data", data.display().to_string()));
    }
    all.extend(flags.iter().cloned());
    let services = catalogue::descriptors();
    let declared = mesh::service::defaults(&services);
    let config = Config::load(&declared, common.config.as_deref(), &all)?;
    let sections: Vec<&str> = services.iter().filter_map(|service| service.section).collect();
    config.check_keys(&sections)?;
    Ok(config)
}

/// Shows every setting.
pub(crate) fn show(common: &Common, args: &ConfigShow) -> anyhow::Result<()> {
    let effective = load(common, &[])?.effective();
    if args.json {
        return output::json(&effective);
    }
    let mut table = Table::new(["SETTING", "VALUE", "FROM"]);
    for setting in effective {
        table.row([setting.key, setting.value, setting.origin]);
    }
    table.print()
}
