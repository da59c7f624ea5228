//! Tries again what was never sent, on another instance.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use http::{Request, Response, Uri, uri::PathAndQuery};
use tonic::{Status, body::Body};
use tower::Service;

use super::{balance::Balance, endpoint::Failed};

/// How many instances one call tries at most.
const TRIES: usize = 3;

/// The innermost service of the stack: picks, sends, and picks again where an
/// instance couldn't be reached at all. The caller's deadline bounds it.
#[derive(Clone)]
pub(super) struct Retry {
    balance: Arc<Balance>,
}

impl Retry {
    pub(super) fn new(balance: Arc<Balance>) -> Self {
        Self { balance }
    }
}

impl Service<Request<Body>> for Retry {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        *request.uri_mut() = absolute(request.uri());
        let balance = self.balance.clone();
        Box::pin(async move {
            let mut tries = 1;
            loop {
                match balance.send(request).await {
                    Ok((mut response, peer)) => {
                        response.extensions_mut().insert(peer);
                        return Ok(response);
                    }
                    Err(Failed { unsent: Some(unsent), .. }) if tries < TRIES => {
                        request = unsent;
                        tries += 1;
                    }
                    Err(Failed { status, .. }) => return Err(status),
                }
            }
        })
    }
}

/// HTTP/2 wants scheme and authority; neither says anything here, for who is
/// meant stands in the peer's certificate.
fn absolute(uri: &Uri) -> Uri {
    let path = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    Uri::builder()
        .scheme("https")
        .authority("mesh")
        .path_and_query(path)
        .build()
        .expect("the parts are valid")
}
