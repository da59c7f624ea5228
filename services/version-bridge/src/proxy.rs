//! One call: to whom it goes on, in which version, and what comes back.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use convert::{Counterpart, Mappings};
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, Version, header};
use http_body_util::BodyExt as _;
use mesh::{
    call::{CALLER_HEADER, Call},
    client::{BETWEEN_RANGES, Channel, ORDER_HEADER, SERVICE_HEADER, VERSION_HEADER},
    status::{Reason, status},
};
use semver::VersionReq;
use tonic::{Status, body::Body};
use tower::Service;

use crate::{
    NAME,
    directory::Directory,
    ends::Ends,
    frames::{Converted, Part},
};

/// What would let a peer compress messages, which can't be converted then.
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// How many ranges are looked at; rules have fewer.
const MAX_RANGES: usize = 64;

/// Answers every call there is.
#[derive(Clone)]
pub(crate) struct Proxy {
    shared: Arc<Shared>,
}

struct Shared {
    mappings: Arc<Mappings>,
    directory: Directory,
    /// How many bytes a message may have.
    limit: usize,
}

impl Proxy {
    pub(crate) fn new(mappings: Arc<Mappings>, directory: Directory, limit: usize) -> Self {
        Self { shared: Arc::new(Shared { mappings, directory, limit }) }
    }
}

impl Service<Request<axum::body::Body>> for Proxy {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<axum::body::Body>) -> Self::Future {
        let shared = self.shared.clone();
        Box::pin(async move {
            let answer = shared.answer(request.map(Body::new)).await;
            Ok(answer.unwrap_or_else(Status::into_http))
        })
    }
}

impl Shared {
    async fn answer(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        let caller = Call::current().forwarded()?;
        let service = self.service(&head.headers, path).await?;
        let mut channel = self.directory.channel(&service).await?;
        let (counterpart, range) = self.choose(&channel, path, &head.headers)?;
        let converter = counterpart
            .map(|one| &one.method)
            .filter(|method| !method.request.keeps_bytes() || !method.answer.keeps_bytes());

        let ends = Ends::default();
        let over = ends.guard();
        let body = match converter {
            Some(method) => {
                let part = Part::Request(service.clone());
                Body::new(Converted::new(body, &method.request, part, self.limit, &ends))
            }
            None => Body::new(ends.request(body)),
        };
        let mut request = Request::new(body);
        // It is answered as it is, or refused by name, where nothing converts it.
        let path = counterpart.map_or(path, |one| &one.method.path);
        *request.uri_mut() =
            Uri::try_from(path).map_err(|why| status(Reason::Internal, why.to_string()))?;
        *request.method_mut() = head.method;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = onward(head.headers, caller, range.as_ref())?;
        let answer = tokio::select! {
            biased;
            // That it couldn't be converted is why it failed, and no fault of theirs.
            status = ends.failed() => return Err(status),
            answer = channel.call(request) => answer?,
        };
        let (mut head, body) = answer.into_parts();
        let body = match converter {
            Some(method) => {
                // What is known of the answer that came isn't so of the one that is made.
                head.extensions.clear();
                head.headers.remove(header::CONTENT_LENGTH);
                let part = Part::Answer(service);
                Body::new(Converted::new(body, &method.answer, part, self.limit, &ends))
            }
            None => body,
        };
        // The request ends with what is held here.
        let body = body.map_frame(move |frame| {
            let _ = &over;
            frame
        });
        Ok(Response::from_parts(head, Body::new(body)))
    }

    /// What a call of `path` becomes, if it has to become something, and the range of
    /// versions that it goes to. Of the ranges that the caller's client chose the
    /// first one counts that anybody is in who could answer.
    fn choose(
        &self,
        channel: &Channel,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<(Option<&Counterpart>, Option<VersionReq>), Status> {
        let asked = text(headers, VERSION_HEADER).map(range_of).transpose()?;
        let order: Vec<Option<VersionReq>> = match text(headers, ORDER_HEADER) {
            Some(order) => {
                let ranges = order.split(BETWEEN_RANGES).take(MAX_RANGES);
                ranges.map(|range| range_of(range).map(Some)).collect::<Result<_, _>>()?
            }
            None => vec![None],
        };
        let counterparts = self.mappings.of_method(path);
        for by in order {
            let both = both(by.as_ref(), asked.as_ref());
            if package(path).is_some_and(|own| channel.speaks(own, both.as_ref())) {
                return Ok((None, both));
            }
            for range in [both, by] {
                let spoken = |one: &&Counterpart| channel.speaks(&one.package, range.as_ref());
                if let Some(counterpart) = counterparts.iter().find(spoken) {
                    return Ok((Some(counterpart), range));
                }
            }
        }
        Ok((None, asked))
    }

    /// The service that a call is for: the one it names, or one that speaks its
    /// package, or another version of it.
    async fn service(&self, headers: &HeaderMap, path: &str) -> Result<String, Status> {
        match text(headers, SERVICE_HEADER) {
            Some(NAME) => {
                return Err(status(Reason::InvalidRequest, format!("{NAME} converts for others")));
            }
            Some(service) => return Ok(service.to_owned()),
            None => {}
        }
        let package = package(path)
            .ok_or_else(|| status(Reason::NotFound, format!("{path} is no method of a package")))?;
        let packages: Vec<&str> =
            [package].into_iter().chain(self.mappings.partners(package)).collect();
        self.directory.speaking(&packages).await
    }
}

/// The package of the method at `path`.
fn package(path: &str) -> Option<&str> {
    let (service, _) = path.strip_prefix('/')?.split_once('/')?;
    service.rsplit_once('.').map(|(package, _)| package)
}

fn range_of(text: &str) -> Result<VersionReq, Status> {
    VersionReq::parse(text).map_err(|why| {
        status(Reason::InvalidRequest, format!("`{text:.64}` is no range such as `^1.2`: {why}"))
    })
}

/// Both ranges at once: all comparators of a range must hold.
fn both(a: Option<&VersionReq>, b: Option<&VersionReq>) -> Option<VersionReq> {
    let comparators: Vec<_> =
        [a, b].into_iter().flatten().flat_map(|range| range.comparators.clone()).collect();
    (!comparators.is_empty()).then_some(VersionReq { comparators })
}

/// The headers that go on: all but those that were for us. The called service decides
/// on everybody whom `caller` names, and on us.
fn onward(
    mut headers: HeaderMap,
    caller: HeaderValue,
    range: Option<&VersionReq>,
) -> Result<HeaderMap, Status> {
    let ours = [SERVICE_HEADER, ORDER_HEADER, VERSION_HEADER].map(HeaderName::from_static);
    for name in ours.into_iter().chain([ACCEPT_ENCODING, header::CONTENT_LENGTH]) {
        headers.remove(name);
    }
    headers.insert(CALLER_HEADER, caller);
    if let Some(range) = range {
        let range = HeaderValue::try_from(range.to_string())
            .map_err(|why| status(Reason::Internal, why.to_string()))?;
        headers.insert(VERSION_HEADER, range);
    }
    Ok(headers)
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
