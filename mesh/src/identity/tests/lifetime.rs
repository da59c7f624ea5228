//! A connection lives no longer than what its peer was trusted by.

use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};
use tonic::body::Body;

use super::{
    live::{DEADLINE, Server, authority},
    *,
};

/// A connection to `server` that does nothing; the handle ends with it.
async fn idle(client: &Identity, server: &Server) -> std::io::Result<Idle> {
    let stream = TcpStream::connect(server.address).await?;
    let name = ServerName::try_from("mesh").unwrap();
    let tls = TlsConnector::from(client.client_config("audit")).connect(name, stream).await?;
    let (send, connection) = hyper::client::conn::http2::handshake::<_, _, Body>(
        TokioExecutor::new(),
        TokioIo::new(tls),
    )
    .await
    .map_err(std::io::Error::other)?;
    let ended = tokio::spawn(async move { drop(connection.await) });
    Ok(Idle { ended, _send: send })
}

struct Idle {
    ended: JoinHandle<()>,
    /// Without a sender the client itself would end it.
    _send: hyper::client::conn::http2::SendRequest<Body>,
}

#[tokio::test]
async fn a_connection_ends_when_its_peers_leaf_does() {
    let folder = tempfile::tempdir().unwrap();
    let server = authority(folder.path(), DAY).identity("audit").await.unwrap();
    let server = Server::start(server).await;
    let short = authority(folder.path(), Duration::from_secs(1));
    let client = frozen(short.identity("gateway").await.unwrap().current());
    let long = frozen(authority(folder.path(), DAY).identity("gateway").await.unwrap().current());

    let mut ends = idle(&client, &server).await.unwrap();
    let goes_on = idle(&long, &server).await.unwrap();
    let expires = client.current().not_after;
    timeout(DEADLINE, &mut ends.ended).await.expect("the connection ends").unwrap();
    let late = SystemTime::now().duration_since(expires).expect("not before the leaf");
    assert!(late < Duration::from_secs(5), "{late:?} after the leaf");
    assert!(!goes_on.ended.is_finished(), "the one of a longer leaf goes on");
    server.stop().await;
}

#[tokio::test]
async fn a_connection_ends_when_the_root_that_vouched_for_it_is_removed_and_no_other_does() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let server = ours.identity("audit", |_| {});
    let (both, one) = ([&*ours.root, &*theirs.root], [&*ours.root]);
    let (material, watched) = watch::channel(trusting(&server, &both));
    let server = Server::start(Identity::new(watched)).await;
    let kept = ours.identity("gateway", |_| {});
    let removed = frozen(trusting(&theirs.identity("gateway", |_| {}), &one));
    let goes_on = idle(&kept, &server).await.unwrap();
    let mut ends = idle(&removed, &server).await.unwrap();

    let now = Identity::new(material.subscribe());
    material.send_replace(trusting(&now, &one));
    timeout(DEADLINE, &mut ends.ended).await.expect("the connection ends").unwrap();
    // In TLS 1.3 a client learns of a refusal after its handshake.
    if let Ok(mut again) = idle(&removed, &server).await {
        timeout(DEADLINE, &mut again.ended).await.expect("it isn't let in again").unwrap();
    }
    assert!(!goes_on.ended.is_finished(), "the one of the other root goes on");
    server.stop().await;
}
