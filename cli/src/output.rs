//! What people and machines see of a command.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{ContentArrangement, presets};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

/// Prints an error with its causes, and what a status carries.
pub(crate) fn error(why: &anyhow::Error) {
    let (bold, plain) =
        if io::stderr().is_terminal() { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    eprintln!("{bold}error:{plain} {why}");
    // A cause that its effect quotes already isn't said again.
    let mut said = why.to_string();
    for cause in why.chain().skip(1).map(ToString::to_string) {
        if !said.contains(&cause) {
            eprintln!("  because: {cause}");
            said = cause;
        }
    }
}

/// Logs warnings to standard error, for commands that aren't services.
pub(crate) fn log_warnings() {
    let filter = EnvFilter::try_from_env("OMNI_LOG__FILTER").unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
}

/// Prints one line; a reader that is gone ends the program in silence.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(why) if why.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => Ok(written?),
    }
}

/// Says one line to whoever is there: one who is gone stops nothing.
pub(crate) fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// As [`say`], on standard error.
pub(crate) fn whisper(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints `value` as JSON: indented for people, on one line for machines.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = if io::stdout().is_terminal() {
        serde_json::to_string_pretty(value)?
    } else {
        serde_json::to_string(value)?
    };
    line(&text)
}

/// Asks a person, unless `yes` answers already.
pub(crate) fn confirm(question: &str, yes: bool) -> anyhow::Result<bool> {
    if yes {
        return Ok(true);
    }
    anyhow::ensure!(io::stdin().is_terminal(), "{question} Nobody is there to ask: pass --yes");
    eprint!("{question} [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// A table, plain enough for pipes.
pub(crate) struct Table {
    table: comfy_table::Table,
}

impl Table {
    pub(crate) fn new<const N: usize>(header: [&str; N]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).set_header(header);
        if io::stdout().is_terminal() {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        }
        Self { table }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.table.add_row(cells);
    }

    /// Prints it, row by row.
    pub(crate) fn print(self) -> anyhow::Result<()> {
        for row in self.table.lines() {
            line(row.trim_end())?;
        }
        Ok(())
    }
}

/// A table that is shown again and again in the same place of a terminal.
#[derive(Default)]
pub(crate) struct Live {
    rows: usize,
}

impl Live {
    /// Shows `table` in the place of the one before.
    pub(crate) fn show(&mut self, table: Table) -> anyhow::Result<()> {
        let rows: Vec<String> = table.table.lines().map(|row| row.trim_end().to_owned()).collect();
        // Up to the first row of the one before, and everything from there cleared.
        let up = if self.rows == 0 { String::new() } else { format!("\x1b[{}A\x1b[J", self.rows) };
        self.rows = rows.len();
        line(&format!("{up}{}", rows.join("\n")))
    }
}
