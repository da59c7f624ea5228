//! What the rounds showed, as tables and as ratios.

use anyhow::Context as _;
use benches::{machine, spread::Spread};
use comfy_table::{Table, presets::ASCII_MARKDOWN};

use crate::{
    CONNECTIONS, IN_FLIGHT, MESSAGE_BYTES, RATE,
    turn::{Contestant, Figures, Shares, Stage},
};

/// What each contestant showed in one round.
#[derive(Default)]
pub(crate) struct Round([Option<Figures>; Contestant::ALL.len()]);

impl Round {
    pub(crate) fn set(&mut self, contestant: Contestant, figures: Figures) {
        self.0[contestant as usize] = Some(figures);
    }

    fn of(&self, contestant: Contestant) -> Option<&Figures> {
        self.0[contestant as usize].as_ref()
    }
}

/// All rounds.
pub(crate) struct Report<'r> {
    pub(crate) rounds: &'r [Round],
    /// Envoy's version.
    pub(crate) envoy: &'r str,
    pub(crate) stage: &'r Stage<'r>,
}

/// A figure of a turn.
type Figure = fn(&Figures) -> f64;

/// How much of a figure counts.
#[derive(Clone, Copy)]
enum Part {
    /// All of this contestant's.
    All(Contestant),
    /// What the first one's is above the second one's, which is the same without
    /// the hop.
    Added(Contestant, Contestant),
}

/// The ratios that are promised: name, figure, which part is divided, and by which.
const RATIOS: [(&str, Figure, Part, Part); 7] = {
    use Contestant::{Bridge, Converting, EnvoyHop, EnvoyPair, Mesh, Tonic, TonicMtls};
    use Part::{Added, All};
    [
        ("mesh_vs_tonic_throughput", |f| f.throughput, All(Mesh), All(TonicMtls)),
        ("mesh_vs_tonic_p99", |f| f.p99, All(Mesh), All(TonicMtls)),
        ("mesh_vs_envoy_throughput", |f| f.throughput, All(Mesh), All(EnvoyPair)),
        ("mesh_vs_envoy_p99", |f| f.p99, All(Mesh), All(EnvoyPair)),
        // The aim: 1.0 at least.
        ("bridge_vs_envoy_throughput", |f| f.throughput, All(Bridge), All(EnvoyHop)),
        // The aim: 1.2 at most.
        ("bridge_vs_envoy_p99", |f| f.p99, Added(Bridge, TonicMtls), Added(EnvoyHop, Tonic)),
        // The aim: 0.7 at least.
        ("conversion_vs_envoy_throughput", |f| f.throughput, All(Converting), All(EnvoyHop)),
    ]
};

impl Part {
    fn of(self, figure: Figure, round: &Round) -> Option<f64> {
        let of = |contestant| round.of(contestant).map(figure);
        match self {
            Self::All(contestant) => of(contestant),
            Self::Added(with, without) => Some(of(with)? - of(without)?),
        }
    }
}

impl Report<'_> {
    /// The tables, in Markdown, which is as well read on a terminal.
    ///
    /// # Errors
    /// When a round lacks a contestant.
    pub(crate) fn tables(&self) -> anyhow::Result<String> {
        let closed = self.table(&[
            ("calls/s", 0, |f| f.throughput),
            ("CPU a call, µs", 1, |f| f.cpu_closed.sum()),
            ("resident, MiB", 1, |f| f.resident.sum()),
        ])?;
        let open = self.table(&[
            ("p50, ms", 3, |f| f.p50),
            ("p99, ms", 3, |f| f.p99),
            ("p999, ms", 3, |f| f.p999),
            ("CPU a call, µs", 1, |f| f.cpu_open.sum()),
        ])?;
        Ok(format!(
            "Closed loop, {IN_FLIGHT} calls in flight (min / median / max):\n\n{closed}\n\n\
             Open loop, {RATE} calls/s (min / median / max):\n\n{open}\n\n\
             Whose CPU it is in the closed loop (medians, µs a call), and whose memory \
             (medians, MiB):\n\n{}\n\n\
             Ratios, each round's own (min / median / max):\n\n{}",
            self.split()?,
            self.ratio_table()
        ))
    }

    /// The tables with what they stand on.
    ///
    /// # Errors
    /// As [`Report::tables`].
    pub(crate) fn markdown(&self) -> anyhow::Result<String> {
        let worst = self.spread(Contestant::ALL, |f| f.others)?.max * 100.0;
        Ok(format!(
            "{}, {} rounds, on {}. Versions: mesh {}, tonic {}, rustls {}, Envoy {}. \
             {CONNECTIONS} connections from every client, {MESSAGE_BYTES} bytes each way, {} s \
             of closed and {} s of open loop a turn. Other processes took {worst:.1} % of the \
             machine at most during a turn.\n\n{}",
            chrono::Utc::now().format("%Y-%m-%d %H:%M UTC"),
            self.rounds.len(),
            machine::description()?,
            env!("CARGO_PKG_VERSION"),
            locked("tonic")?,
            locked("rustls")?,
            self.envoy,
            self.stage.closed.as_secs(),
            self.stage.open.as_secs(),
            self.tables()?
        ))
    }

    /// The promised ratios, with the median of all rounds; `None` where no round has
    /// one.
    pub(crate) fn ratios(&self) -> impl Iterator<Item = (&'static str, Option<f64>)> {
        RATIOS.into_iter().map(move |(name, figure, part, by)| {
            let spread = Spread::of(self.ratio(figure, part, by));
            (name, spread.map(|spread| spread.median))
        })
    }

    /// The ratio of each round, but for those in which the hop that it is divided by
    /// added nothing.
    fn ratio(&self, figure: Figure, part: Part, by: Part) -> Vec<f64> {
        let ratios = self.rounds.iter().filter_map(|round| {
            let by = by.of(figure, round).filter(|by| *by > 0.0)?;
            Some(part.of(figure, round)? / by)
        });
        ratios.collect()
    }

    fn spread(
        &self,
        contestants: impl IntoIterator<Item = Contestant>,
        figure: Figure,
    ) -> anyhow::Result<Spread> {
        let figures = contestants
            .into_iter()
            .flat_map(|contestant| self.rounds.iter().filter_map(move |r| r.of(contestant)));
        Spread::of(figures.map(figure)).context("no round is whole")
    }

    fn table(&self, columns: &[(&str, usize, Figure)]) -> anyhow::Result<Table> {
        let names = columns.iter().map(|(name, ..)| (*name).to_owned());
        let mut table = table(["contestant".to_owned()].into_iter().chain(names));
        for contestant in Contestant::ALL {
            let mut row = vec![contestant.name().to_owned()];
            for (_, digits, figure) in columns {
                row.push(cell(self.spread([contestant], *figure)?, *digits));
            }
            table.add_row(row);
        }
        Ok(table)
    }

    /// Who of client, server and hops takes how much.
    fn split(&self) -> anyhow::Result<Table> {
        let heads = ["contestant", "client", "server", "hops", "client", "server", "hops"];
        let mut table = table(heads.map(str::to_owned));
        for contestant in Contestant::ALL {
            let figures: Vec<&Figures> =
                self.rounds.iter().filter_map(|round| round.of(contestant)).collect();
            let mut row = vec![contestant.name().to_owned()];
            for of in [|f: &Figures| f.cpu_closed, |f: &Figures| f.resident] {
                for share in [|s: Shares| s.client, |s: Shares| s.server, |s: Shares| s.hops] {
                    let spread = Spread::of(figures.iter().map(|figures| share(of(figures))));
                    row.push(format!("{:.1}", spread.context("no round is whole")?.median));
                }
            }
            table.add_row(row);
        }
        Ok(table)
    }

    fn ratio_table(&self) -> Table {
        let mut table = table(["ratio", "min / median / max"].map(str::to_owned));
        for (name, figure, part, by) in RATIOS {
            let ratios = self.ratio(figure, part, by);
            let left_out = match self.rounds.len() - ratios.len() {
                0 => String::new(),
                rounds => format!(" ({rounds} left out: nothing was added)"),
            };
            let ratios = Spread::of(ratios).map_or_else(String::new, |spread| cell(spread, 2));
            table.add_row([name.to_owned(), ratios + &left_out]);
        }
        table
    }
}

/// The version of `package` that this was built with; the newest, where others
/// brought older ones.
fn locked(package: &str) -> anyhow::Result<&'static str> {
    const LOCK: &str = include_str!("../../Cargo.lock");
    let (_, rest) = LOCK
        .rsplit_once(&format!("\nname = \"{package}\"\nversion = \""))
        .with_context(|| format!("Cargo.lock has no {package}"))?;
    rest.split('"').next().context("a version ends")
}

fn table(heads: impl IntoIterator<Item = String>) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(heads.into_iter().collect::<Vec<_>>());
    table
}

fn cell(spread: Spread, digits: usize) -> String {
    let Spread { min, median, max } = spread;
    format!("{min:.digits$} / {median:.digits$} / {max:.digits$}")
}
