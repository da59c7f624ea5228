//! What Linux tells of processes and of the machine, by /proc.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

/// The processor time that process `pid` has used.
///
/// # Errors
/// When it is gone.
pub fn cpu_of(pid: u32) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).context(path)?;
    // The second field is the program's name in brackets, which may hold
    // anything. After it, user and system time are the 12th and 13th.
    let (_, fields) = stat.rsplit_once(')').context("a stat without a name")?;
    let ticks = fields.split_ascii_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.map(str::parse::<u64>).sum::<Result<_, _>>()?;
    Ok(ticks_to_time(ticks))
}

/// How many bytes of process `pid` are in memory.
///
/// # Errors
/// When it is gone.
pub fn resident_of(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).context(path)?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
    Ok(kibibytes.context("no VmRSS")?.trim().parse::<u64>()? * 1024)
}

/// How busy the machine is with what isn't ours, from one moment on.
pub struct Others {
    ours: Vec<u32>,
    busy: Duration,
    own: Duration,
    begun: Instant,
}

impl Others {
    /// From now on; `ours` and this process don't count.
    ///
    /// # Errors
    /// When one of `ours` is gone.
    pub fn watch(mut ours: Vec<u32>) -> anyhow::Result<Self> {
        ours.push(std::process::id());
        let own = ours.iter().map(|pid| cpu_of(*pid)).sum::<anyhow::Result<_>>()?;
        Ok(Self { ours, busy: busy()?, own, begun: Instant::now() })
    }

    /// The share of all cores' time that went to others, 0 to 1.
    ///
    /// # Errors
    /// When one of ours is gone.
    pub fn share(&self) -> anyhow::Result<f64> {
        let own: Duration = self.ours.iter().map(|pid| cpu_of(*pid)).sum::<anyhow::Result<_>>()?;
        let busy = busy()?.saturating_sub(self.busy);
        let others = busy.saturating_sub(own.saturating_sub(self.own));
        Ok(others.as_secs_f64() / (self.begun.elapsed().as_secs_f64() * cores()? as f64))
    }
}

/// The time that all cores together have worked for processes, or were kept
/// from it by other machines on the same host. Interrupts don't count: our own
/// packets make them too.
fn busy() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("an empty /proc/stat")?;
    let ticks: Vec<u64> =
        line.split_ascii_whitespace().skip(1).map(str::parse).collect::<Result<_, _>>()?;
    // user, nice, system, idle, iowait, irq, softirq, steal
    ensure!(ticks.len() >= 8, "/proc/stat has {} columns", ticks.len());
    Ok(ticks_to_time(ticks[0] + ticks[1] + ticks[2] + ticks[7]))
}

fn ticks_to_time(ticks: u64) -> Duration {
    Duration::from_secs(ticks)
        / u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100)
}

/// How many cores there are.
///
/// # Errors
/// When the system doesn't say.
pub fn cores() -> anyhow::Result<usize> {
    Ok(std::thread::available_parallelism()?.get())
}

/// The machine in a few words: cores, processor, kernel.
///
/// # Errors
/// When /proc can't be read.
pub fn description() -> anyhow::Result<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown", |rest| rest.trim_start_matches([':', ' ', '\t']).trim());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!("{} cores of {model}, Linux {}", cores()?, kernel.trim()))
}
