//! `omni bridge`: mappings between versions of a package, before they are used.

use anyhow::{Context as _, bail};
use convert::{Conversion, Direction, Mapping, Protos};
use prost_reflect::DescriptorPool;
use serde_json::json;

use crate::{
    args::{BridgeCheck, BridgePropose},
    input,
    output::{self, line},
};

/// Proves a mapping, and tells what it loses.
pub(crate) fn check(args: &BridgeCheck) -> anyhow::Result<()> {
    let file = args.file.display();
    let text = input::read_text(&args.file)?;
    let mapping = Mapping::parse(&text).with_context(|| format!("{file} is no mapping"))?;
    let protos = Protos::load(&args.protos)?;
    let (old, new) = (of(&protos, &mapping.old)?, of(&protos, &mapping.new)?);
    let (report, conversion) = Conversion::prove(&mapping, old, new);
    let mut messages = Vec::new();
    for direction in [Direction::Upgrade, Direction::Downgrade] {
        messages.extend(conversion.iter().flat_map(|of| of.messages(direction)).map(|one| {
            json!({
                "direction": direction,
                "from": one.source().full_name(),
                "to": one.target().full_name(),
                "exact": one.is_exact(),
                "same_bytes": one.keeps_bytes(),
            })
        }));
    }
    messages.sort_by_key(|message| message["from"].to_string());
    if args.json {
        output::json(&json!({
            "old": mapping.old,
            "new": mapping.new,
            "problems": report.problems,
            "losses": report.losses,
            "messages": messages,
        }))?;
    } else {
        for problem in &report.problems {
            line(&format!("problem: {problem}"))?;
        }
        for loss in &report.losses {
            line(&format!("lossy: {loss}"))?;
        }
    }
    if !report.problems.is_empty() {
        bail!("{file} can't be used: {} problems", report.problems.len());
    }
    if !args.json {
        let count = |what| messages.iter().filter(|message| message[what] == true).count();
        line(&format!(
            "{} and {}: {} messages convert, {} of them exactly, {} as the bytes they are",
            mapping.old,
            mapping.new,
            messages.len(),
            count("exact"),
            count("same_bytes"),
        ))?;
    }
    Ok(())
}

/// Compares two versions, and writes a first mapping.
pub(crate) fn propose(args: &BridgePropose) -> anyhow::Result<()> {
    let protos = Protos::load(&args.protos)?;
    let (old, new) = (of(&protos, &args.old)?, of(&protos, &args.new)?);
    let proposal = convert::propose((old, &args.old), (new, &args.new));
    if args.json {
        return output::json(&json!({ "changes": proposal.changes, "mapping": proposal.mapping }));
    }
    line(proposal.to_toml().trim_end())
}

/// The descriptors of `package`.
fn of<'p>(protos: &'p Protos, package: &str) -> anyhow::Result<&'p DescriptorPool> {
    protos.of(package).with_context(|| {
        format!("none of the files has the package `{package}`: say where with --protos")
    })
}
