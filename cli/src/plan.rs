//! `omni plan`: in which order everything starts.

use serde::Serialize;
use service_coordinator::plan::{Plan as Order, Unit};

use crate::{
    args::{Common, Plan},
    catalogue, config,
    output::{self, line},
};

#[derive(Serialize)]
struct Shown<'a> {
    level: usize,
    #[serde(flatten)]
    unit: &'a Unit,
}

/// Shows the plan.
pub(crate) fn run(common: &Common, args: &Plan) -> anyhow::Result<()> {
    let plan = catalogue::plan(&config::load(common, &[])?)?;
    if args.mermaid {
        return line(plan.to_mermaid().trim_end());
    }
    let shown = shown(&plan);
    if args.json {
        return output::json(&shown);
    }
    let mut phase = None;
    for (at, Shown { level, unit }) in shown.iter().enumerate() {
        if phase != Some(unit.phase) {
            phase = Some(unit.phase);
            line(&unit.phase.to_string())?;
        }
        let is_last = shown.get(at + 1).is_none_or(|next| next.unit.phase != unit.phase);
        let branch = if is_last { '└' } else { '├' };
        let mut text = format!("{branch}─ {level}  {}", unit.name);
        if !unit.requires.is_empty() {
            text += &format!("  after {}", names(&unit.requires));
        }
        if !unit.wants.is_empty() {
            text += &format!("  better with {}", names(&unit.wants));
        }
        line(&text)?;
    }
    Ok(())
}

fn shown(plan: &Order) -> Vec<Shown<'_>> {
    let levels = plan.levels().iter().enumerate();
    let shown = levels.flat_map(|(level, names)| {
        names.iter().filter_map(move |name| Some(Shown { level, unit: plan.units().get(name)? }))
    });
    shown.collect()
}

fn names(names: &std::collections::BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}
