//! `omni routes`: the rules that say which versions of a service get its calls.

use anyhow::{Context as _, bail};
use mesh::{
    config::Config,
    policy::{Revision, RuleBook, VersionRules},
    registry,
};
use serde_json::json;

use crate::{
    args::{
        Common, RoutesCheck, RoutesCommand, RoutesGet, RoutesHistory, RoutesRollback, RoutesSet,
    },
    certs, config, input,
    output::{self, Table, line},
};

/// Does what `command` says.
pub(crate) async fn run(common: &Common, command: &RoutesCommand) -> anyhow::Result<()> {
    let config = config::load(common, &[])?;
    let book = RuleBook::open(&config)?;
    match command {
        RoutesCommand::Get(args) => match &args.service {
            Some(service) => get(&book, service, args).await,
            None => list(&book, args).await,
        },
        RoutesCommand::Set(args) => set(&config, &book, args).await,
        RoutesCommand::Check(args) => check(&config, args).await,
        RoutesCommand::History(args) => history(&book, args).await,
        RoutesCommand::Rollback(args) => rollback(&config, &book, args).await,
    }
}

async fn list(book: &RuleBook, args: &RoutesGet) -> anyhow::Result<()> {
    let all = book.all().await?;
    if args.json {
        let current = all
            .iter()
            .filter_map(|(service, history)| Some((service, history.as_ref().ok()?.current()?)));
        return output::json(&current.collect::<std::collections::BTreeMap<_, _>>());
    }
    let mut table = Table::new(["SERVICE", "REVISION", "SET", "BY", "RULES"]);
    for (service, history) in all {
        let history = match history {
            Ok(history) => history,
            Err(why) => {
                tracing::warn!("{why}");
                continue;
            }
        };
        let Some(now) = history.current() else { continue };
        let [number, at, by, rules] = row(now);
        table.row([service, number, at, by, rules]);
    }
    table.print()
}

async fn get(book: &RuleBook, service: &str, args: &RoutesGet) -> anyhow::Result<()> {
    let history = book.history(service).await?;
    if args.json {
        return output::json(&history.current());
    }
    match history.current().filter(|now| !now.rules.trim().is_empty()) {
        Some(now) => line(now.rules.trim_end()),
        None => line(&format!("# {service} has no rules: any version gets its calls")),
    }
}

async fn set(config: &Config, book: &RuleBook, args: &RoutesSet) -> anyhow::Result<()> {
    let text = input::read_text(&args.file)?;
    let by = certs::operator(&args.operator);
    let revision = book.set(&args.service, &by, &text).await?;
    told(config, &args.service, &revision).await
}

async fn check(config: &Config, args: &RoutesCheck) -> anyhow::Result<()> {
    let rules = VersionRules::parse(&input::read_text(&args.file)?).map_err(anyhow::Error::msg)?;
    let matches = Matches::of(config, &args.service, &rules).await?;
    if args.json {
        return output::json(&matches.all.iter().map(Match::json).collect::<Vec<_>>());
    }
    let mut table = Table::new(["RULE", "RANGE", "INSTANCES", "VERSIONS"]);
    for Match { rule, range, versions } in &matches.all {
        let (count, shown) = (versions.len().to_string(), distinct(versions));
        table.row([rule.to_string(), range.clone(), count, shown]);
    }
    table.print()?;
    matches.warn(&args.service);
    Ok(())
}

async fn history(book: &RuleBook, args: &RoutesHistory) -> anyhow::Result<()> {
    let history = book.history(&args.service).await?;
    if args.json {
        return output::json(&history);
    }
    let mut table = Table::new(["REVISION", "SET", "BY", "RULES"]);
    for revision in history.revisions.iter().rev() {
        table.row(row(revision));
    }
    table.print()
}

async fn rollback(config: &Config, book: &RuleBook, args: &RoutesRollback) -> anyhow::Result<()> {
    let history = book.history(&args.service).await?;
    let now = history.current().with_context(|| format!("{} has no rules", args.service))?;
    let wanted = args.to.unwrap_or(now.number.saturating_sub(1));
    let found = history.revisions.iter().find(|revision| revision.number == wanted);
    let Some(found) = found else {
        let kept: Vec<String> =
            history.revisions.iter().map(|revision| revision.number.to_string()).collect();
        bail!("there is no revision {wanted} of {}; kept are {}", args.service, kept.join(", "));
    };
    let by = certs::operator(&args.operator);
    let revision = book.set(&args.service, &by, &found.rules).await?;
    told(config, &args.service, &revision).await
}

/// Says what counts now, and which of it no instance is in.
async fn told(config: &Config, service: &str, revision: &Revision) -> anyhow::Result<()> {
    line(&format!("{service}: revision {} counts", revision.number))?;
    let rules = VersionRules::parse(&revision.rules).map_err(anyhow::Error::msg)?;
    // It is set already: who can't be asked about isn't warned of.
    if let Ok(matches) = Matches::of(config, service, &rules).await {
        matches.warn(service);
    }
    Ok(())
}

/// Which instances are in which range.
struct Matches {
    all: Vec<Match>,
}

struct Match {
    rule: usize,
    range: String,
    versions: Vec<semver::Version>,
}

impl Match {
    fn json(&self) -> serde_json::Value {
        json!({ "rule": self.rule, "range": self.range, "instances": self.versions })
    }
}

impl Matches {
    async fn of(config: &Config, service: &str, rules: &VersionRules) -> anyhow::Result<Self> {
        let services = registry::registry(config)?.services().await?;
        let instances = services.get(service).cloned().unwrap_or_default();
        let all = rules.ranges().map(|(rule, range)| {
            let versions = instances.iter().map(|instance| instance.version.clone());
            let versions = versions.filter(|version| range.matches(version)).collect();
            Match { rule, range: range.to_string(), versions }
        });
        Ok(Self { all: all.collect() })
    }

    fn warn(&self, service: &str) {
        for Match { rule, range, versions } in &self.all {
            if versions.is_empty() {
                tracing::warn!("rule {rule}: no instance of {service} is in {range}");
            }
        }
    }
}

fn distinct(versions: &[semver::Version]) -> String {
    let mut versions = versions.to_vec();
    versions.sort();
    versions.dedup();
    versions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Its number, when and by whom it was set, and how many rules it has.
fn row(revision: &Revision) -> [String; 4] {
    let at = revision.at.format("%Y-%m-%dT%H:%M:%SZ").to_string();
    let rules = VersionRules::parse(&revision.rules);
    let rules = rules.map_or_else(|_| "wrong".to_owned(), |rules| rules.len().to_string());
    [revision.number.to_string(), at, revision.by.clone(), rules]
}
