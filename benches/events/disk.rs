//! The disk alone: bodies are written to a file, synced, and have arrived. What
//! waits goes together, as in a database. It tells what of a latency is the disk's.

use std::{fs::File, io::Write as _, sync::Arc};

use anyhow::Context as _;
use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use crate::journey::{Arrivals, Way};

/// How many may wait to be written.
const WAITING: usize = 1024;

#[derive(Clone)]
pub(crate) struct Disk {
    waiting: mpsc::Sender<Waiting>,
    arrivals: Arrivals,
    _data: Arc<tempfile::TempDir>,
}

struct Waiting {
    body: Vec<u8>,
    written: oneshot::Sender<()>,
}

impl Disk {
    /// With events of so many bytes.
    pub(crate) fn start(bytes: usize) -> anyhow::Result<Self> {
        let data = Arc::new(tempfile::tempdir()?);
        let file = File::create(data.path().join("events"))?;
        let arrivals = Arrivals::new(bytes);
        let (waiting, queue) = mpsc::channel(WAITING);
        let arriving = arrivals.clone();
        std::thread::spawn(move || {
            if let Err(why) = write(file, queue, &arriving) {
                eprintln!("disk: {why}");
            }
        });
        Ok(Self { waiting, arrivals, _data: data })
    }
}

fn write(
    mut file: File,
    mut queue: mpsc::Receiver<Waiting>,
    arrivals: &Arrivals,
) -> std::io::Result<()> {
    let mut batch = Vec::new();
    while queue.blocking_recv_many(&mut batch, WAITING) > 0 {
        let bodies: Vec<u8> = batch.iter().flat_map(|waiting| &waiting.body).copied().collect();
        file.write_all(&bodies)?;
        file.sync_data()?;
        arrivals.note(batch.iter().map(|waiting| &waiting.body[..]));
        for Waiting { written, .. } in batch.drain(..) {
            // Whoever sent it may be gone.
            let _ = written.send(());
        }
    }
    Ok(())
}

#[async_trait]
impl Way for Disk {
    async fn send(&self, _: u64, body: Vec<u8>) -> anyhow::Result<()> {
        let (written, is_written) = oneshot::channel();
        let sent = self.waiting.send(Waiting { body, written }).await;
        sent.ok().context("nothing is written any more")?;
        Ok(is_written.await?)
    }

    fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }
}
