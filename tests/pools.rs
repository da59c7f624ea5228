//! What pools of clients and load balancers do with their connections to the gateway: they
//! open some ahead of need, and keep others for the next request.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tests::{
    Layout, Mesh,
    mesh::{new_id, signature},
    turn::Turn,
};
use tokio::net::TcpStream;
use watchdog::Watchdog;

const BODY: &[u8] = b"{}";

/// How long a connection is left alone: half of a promised minute.
const KEPT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_a_pool_keeps_is_there_when_it_is_needed() {
    let _turn = Turn::beside_others().await;
    let _watchdog = Watchdog::start();
    let mesh = Mesh::start(Layout::Up).await;
    let connect = async || {
        let stream = TcpStream::connect(mesh.gateway()).await.unwrap();
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    };
    let post = async |sender: &mut SendRequest<Full<Bytes>>| {
        let request = http::Request::post("/hooks/demo")
            .header("host", "gateway")
            .header("content-type", "application/json")
            .header("x-github-event", "push")
            .header("x-github-delivery", new_id())
            .header("x-hub-signature-256", signature(BODY));
        let request = request.body(Full::new(Bytes::from_static(BODY))).unwrap();
        sender.send_request(request).await.map(|answer| answer.status()).map_err(|e| e.to_string())
    };
    let (mut spare, mut used) = (vec![connect().await, connect().await], connect().await);
    assert_eq!(post(&mut used).await, Ok(StatusCode::ACCEPTED));
    tokio::time::sleep(KEPT).await;
    for (n, sender) in spare.iter_mut().enumerate() {
        assert_eq!(post(sender).await, Ok(StatusCode::ACCEPTED), "spare {n}");
    }
    tokio::time::sleep(KEPT).await;
    assert_eq!(post(&mut used).await, Ok(StatusCode::ACCEPTED), "idle for a minute");
    mesh.stop().await;
}
