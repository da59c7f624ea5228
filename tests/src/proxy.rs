//! The network between two processes: a TCP proxy that can be told to fail in
//! the ways in which networks do.

use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use mesh::{
    Error,
    registry::{Instance, Registration, Registry, Snapshot},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// What becomes of the bytes, of connections that are there and of new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They pass.
    Pass,
    /// They are held back, in both directions, as in a partition whose packets
    /// are dropped: nobody is told, and what was sent passes when it ends.
    Stall,
    /// Each piece is late by this, in both directions.
    Delay(Duration),
    /// The client is told that the other end has finished, while what it sends
    /// itself is still taken, to nowhere.
    HalfClose,
    /// Connections are reset.
    Reset,
}

/// A proxy on a free port of loopback; it ends when this is dropped.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    running: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy to `upstream`, in [`Mode::Pass`].
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let mode = watch::Sender::new(Mode::Pass);
        let modes = mode.subscribe();
        let running = tokio::spawn(async move {
            // They end with this task.
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                connections.spawn(connection(client, upstream, modes.clone()));
            }
        });
        Self { address, mode, running }
    }

    /// Goes on in this mode.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.running.abort();
    }
}

async fn connection(mut client: TcpStream, to: SocketAddr, mut modes: watch::Receiver<Mode>) {
    let passing = {
        let (from_client, to_client) = client.split();
        let modes = modes.clone();
        async move {
            let Ok(mut server) = TcpStream::connect(to).await else { return };
            if server.set_nodelay(true).is_err() {
                return;
            }
            let (from_server, to_server) = server.split();
            let there = pump(from_client, to_server, false, modes.clone());
            let back = pump(from_server, to_client, true, modes);
            tokio::join!(there, back);
        }
    };
    let reset = tokio::select! {
        () = passing => false,
        // It fails when the proxy is gone.
        reset = modes.wait_for(|mode| *mode == Mode::Reset) => reset.is_ok(),
    };
    if reset {
        // Closed with a reset then, instead of in order.
        let _ = client.set_zero_linger();
    }
}

/// Moves bytes in one direction until one end is gone.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    to_client: bool,
    mut modes: watch::Receiver<Mode>,
) {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let mode = *modes.borrow_and_update();
        if mode == Mode::HalfClose && to_client {
            let _ = to.shutdown().await;
            return;
        }
        let read = tokio::select! {
            read = from.read(&mut bytes), if mode != Mode::Stall => read,
            changed = modes.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let read = match read {
            Ok(0) | Err(_) => {
                let _ = to.shutdown().await;
                return;
            }
            Ok(read) => read,
        };
        match mode {
            Mode::HalfClose => continue,
            Mode::Delay(late) => tokio::time::sleep(late).await,
            _ => {}
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

/// A registry whose instances are reached by way of proxies.
pub struct Rerouted {
    inner: Arc<dyn Registry>,
    proxies: HashMap<SocketAddr, SocketAddr>,
}

impl Rerouted {
    /// What `inner` finds at an address of `proxies`, is found at that proxy.
    pub fn new(inner: Arc<dyn Registry>, proxies: HashMap<SocketAddr, SocketAddr>) -> Self {
        Self { inner, proxies }
    }

    fn reroute(&self, snapshot: &Snapshot) -> Snapshot {
        let reroute = |instance: &Instance| {
            let address = self.proxies.get(&instance.address).copied();
            Instance { address: address.unwrap_or(instance.address), ..instance.clone() }
        };
        snapshot.iter().map(reroute).collect()
    }
}

#[async_trait]
impl Registry for Rerouted {
    async fn register(&self, instance: Instance) -> Result<Registration, Error> {
        self.inner.register(instance).await
    }

    async fn watch(&self, service: &str) -> Result<watch::Receiver<Snapshot>, Error> {
        let mut snapshots = self.inner.watch(service).await?;
        let (rerouted, watched) = watch::channel(self.reroute(&snapshots.borrow_and_update()));
        let this = Self { inner: self.inner.clone(), proxies: self.proxies.clone() };
        tokio::spawn(async move {
            while snapshots.changed().await.is_ok() {
                let next = this.reroute(&snapshots.borrow_and_update());
                if rerouted.send(next).is_err() {
                    return;
                }
            }
        });
        Ok(watched)
    }

    async fn services(&self) -> Result<BTreeMap<String, Snapshot>, Error> {
        let services = self.inner.services().await?;
        Ok(services.into_iter().map(|(name, all)| (name, self.reroute(&all))).collect())
    }
}
