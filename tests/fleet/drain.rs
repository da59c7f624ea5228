//! A drain as one connection sees it, without a client that would hide it.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tests::{
    fleet::{Fleet, SERVICE},
    ground::Ground,
    tls, until,
};
use tokio::{net::TcpStream, sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;

type Body = StreamBody<ReceiverStream<Result<Frame<Bytes>, Infallible>>>;
type Message = mpsc::Sender<Result<Frame<Bytes>, Infallible>>;

/// The shortest gRPC message: not compressed, 0 bytes long.
const EMPTY: &[u8] = &[0; 5];
/// How long anything may take that isn't to be waited for.
const SOON: Duration = Duration::from_secs(5);

/// A call of a unary method, whose message is yet to come.
fn unfinished() -> (Message, Request<Body>) {
    let (message, messages) = mpsc::channel(1);
    let request = Request::post("https://mesh/omnibridge.hooks.v1.HookReceiver/ListSessions")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(ReceiverStream::new(messages)));
    (message, request.expect("its parts are valid"))
}

/// A connection to instance 0, with one call in flight on it.
async fn in_flight(
    fleet: &Fleet,
) -> (SendRequest<Body>, Message, impl Future<Output = hyper::Result<Response<Incoming>>> + use<>) {
    let stream = tls::as_party(&fleet.operator().await, SERVICE, fleet.address(0)).await.unwrap();
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut send, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    // Answered in full: what is sent on it arrives.
    let (message, request) = unfinished();
    message.send(Ok(Frame::data(Bytes::from_static(EMPTY)))).await.unwrap();
    drop(message);
    let answer = send.send_request(request).await.unwrap();
    answer.into_body().collect().await.unwrap();
    let (message, request) = unfinished();
    let answer = send.send_request(request);
    (send, message, answer)
}

/// Waits until the connection takes no more calls.
async fn told_to_move(send: &SendRequest<Body>) {
    until("the connection is told to move", || {
        let mut send = send.clone();
        async move {
            let (message, request) = unfinished();
            message.send(Ok(Frame::data(Bytes::from_static(EMPTY)))).await.unwrap();
            drop(message);
            match timeout(SOON, send.send_request(request)).await {
                Ok(Err(_)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        }
    })
    .await;
}

pub async fn a_connection_is_told_to_move_and_what_is_in_flight_on_it_is_answered(ground: Ground) {
    let mut fleet = Fleet::start(ground, 1).await;
    let address = fleet.address(0);
    let (send, message, answer) = in_flight(&fleet).await;
    let answer = tokio::spawn(answer);
    let told = Instant::now();
    let moved = async {
        told_to_move(&send).await;
        let moved = told.elapsed();
        assert!(TcpStream::connect(address).await.is_err(), "nobody new is let in");
        // Nobody takes it where the call has ended before: the answer says why.
        let _ = message.send(Ok(Frame::data(Bytes::from_static(EMPTY)))).await;
        drop(message);
        let answer = timeout(SOON, answer).await.unwrap().unwrap().unwrap();
        let trailers = answer.into_body().collect().await.unwrap().trailers().cloned();
        assert_eq!(trailers.unwrap_or_default()["grpc-status"], "0");
        moved
    };
    let (moved, _) = tokio::join!(moved, fleet.drain(0));
    let drained = told.elapsed();
    println!("{ground:?}: SIGTERM, told to move after {moved:.1?}, drained after {drained:.1?}");
    assert!(drained < SOON);
}

pub async fn a_straggler_is_cut_off_at_the_end_of_the_drain(ground: Ground) {
    let mut fleet = Fleet::start_with(ground, 1, &[("OMNI_DRAIN_TIMEOUT", "2s")]).await;
    let (_send, _message, answer) = in_flight(&fleet).await;
    let answer = tokio::spawn(answer);
    let told = fleet.drain(0).await;
    let drained = told.elapsed();
    println!("{ground:?}: SIGTERM, with a straggler drained after {drained:.1?} of 2 s");
    assert!(drained >= Duration::from_secs(1) && drained < SOON, "{drained:?}");
    assert!(timeout(SOON, answer).await.unwrap().unwrap().is_err(), "it is cut off");
}
