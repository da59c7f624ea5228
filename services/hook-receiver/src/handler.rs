//! The generated trait: check the request, call the logic, answer.

use std::sync::Arc;

use api::hooks::v1::{
    GetHookRequest, GetHookResponse, GetSessionRequest, GetSessionResponse, ListHooksRequest,
    ListHooksResponse, ListSessionsRequest, ListSessionsResponse, NewHook, ReceiveBatchItem,
    ReceiveBatchRequest, ReceiveBatchResponse, ReceiveBatchResult, ReceiveRequest, ReceiveResponse,
    Refusal, WatchHooksRequest, hook_receiver_server::HookReceiver, receive_batch_result::Outcome,
};
use chrono::Utc;
use mesh::{
    call::Call,
    messages::common::v1::TraceContext,
    page, status,
    telemetry::trace::{self, Kind},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    Error,
    hook::Hook,
    store::{Hooks, Stored},
    watch::{self, Watch},
};

/// How many items a batch may have.
const MAX_BATCH: usize = 256;

pub(crate) struct Handler {
    hooks: Arc<Hooks>,
    draining: CancellationToken,
}

impl Handler {
    pub(crate) fn new(hooks: Hooks, draining: CancellationToken) -> Self {
        Self { hooks: Arc::new(hooks), draining }
    }
}

#[tonic::async_trait]
impl HookReceiver for Handler {
    async fn receive(
        &self,
        request: Request<ReceiveRequest>,
    ) -> Result<Response<ReceiveResponse>, Status> {
        let hook = Hook::receive(required(request.into_inner().hook)?, Utc::now())?;
        let trace = trace::current().or_else(|| Call::current().trace.clone());
        let traceparent = trace.as_ref().map(trace::format).unwrap_or_default();
        let mut stored = self.hooks.store(vec![Stored { hook, traceparent }]).await;
        let receipt = stored.pop().unwrap_or(Err(mesh::Error::WriterStopped))?;
        Ok(Response::new(ReceiveResponse { receipt: Some(receipt) }))
    }

    async fn receive_batch(
        &self,
        request: Request<ReceiveBatchRequest>,
    ) -> Result<Response<ReceiveBatchResponse>, Status> {
        let items = request.into_inner().items;
        if !(1..=MAX_BATCH).contains(&items.len()) {
            return Err(Error::invalid("items", format!("must be 1 to {MAX_BATCH}")).into());
        }
        let now = Utc::now();
        let mut results: Vec<ReceiveBatchResult> = Vec::with_capacity(items.len());
        let (mut hooks, mut places, mut spans) = (Vec::new(), Vec::new(), Vec::new());
        for (place, ReceiveBatchItem { hook, trace }) in items.into_iter().enumerate() {
            let parent = trace.as_ref().and_then(|trace| trace::parse(&trace.traceparent));
            let span = trace::child("hook-receiver", Kind::Server, "receive", parent.as_ref());
            let traceparent =
                trace::context(&span).or(parent).as_ref().map(trace::format).unwrap_or_default();
            spans.push(span);
            let own = |traceparent: String| TraceContext { traceparent, tracestate: String::new() };
            let mut result = ReceiveBatchResult { outcome: None, trace: None };
            if !traceparent.is_empty() {
                result.trace = Some(own(traceparent.clone()));
            }
            match required(hook).and_then(|hook| Hook::receive(hook, now)) {
                Ok(hook) => {
                    hooks.push(Stored { hook, traceparent });
                    places.push(place);
                }
                Err(why) => result.outcome = Some(refusal(why.into())),
            }
            results.push(result);
        }
        let stored = self.hooks.store(hooks).await;
        for (place, stored) in places.into_iter().zip(stored) {
            results[place].outcome = Some(match stored {
                Ok(receipt) => Outcome::Receipt(receipt),
                Err(why) => refusal(why.into()),
            });
        }
        drop(spans);
        Ok(Response::new(ReceiveBatchResponse { results }))
    }

    async fn get_hook(
        &self,
        request: Request<GetHookRequest>,
    ) -> Result<Response<GetHookResponse>, Status> {
        let id = request.into_inner().id;
        let hook = self.hooks.get(&id).await?.ok_or(Error::NotFound { what: "hook", id })?;
        Ok(Response::new(GetHookResponse { hook: Some(hook) }))
    }

    async fn list_hooks(
        &self,
        request: Request<ListHooksRequest>,
    ) -> Result<Response<ListHooksResponse>, Status> {
        let ListHooksRequest { filter, page_size, page_token } = request.into_inner();
        let filter = filter.unwrap_or_default();
        let (hooks, next_page_token) =
            self.hooks.list(&filter, page::size(page_size)?, &page_token).await?;
        Ok(Response::new(ListHooksResponse { hooks, next_page_token }))
    }

    type WatchHooksStream = ReceiverStream<watch::Answer>;

    async fn watch_hooks(
        &self,
        request: Request<WatchHooksRequest>,
    ) -> Result<Response<Self::WatchHooksStream>, Status> {
        let WatchHooksRequest { filter, resume_token } = request.into_inner();
        let watch =
            Watch::begin(self.hooks.clone(), filter.unwrap_or_default(), &resume_token).await?;
        let (sender, receiver) = watch::channel();
        // It ends when the stream is dropped or the service drains.
        tokio::spawn(watch.run(sender, self.draining.clone()));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn get_session(
        &self,
        request: Request<GetSessionRequest>,
    ) -> Result<Response<GetSessionResponse>, Status> {
        let id = request.into_inner().id;
        let session =
            self.hooks.session(&id).await?.ok_or(Error::NotFound { what: "session", id })?;
        Ok(Response::new(GetSessionResponse { session: Some(session) }))
    }

    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        let ListSessionsRequest { page_size, page_token } = request.into_inner();
        let (sessions, next_page_token) =
            self.hooks.sessions(page::size(page_size)?, &page_token).await?;
        Ok(Response::new(ListSessionsResponse { sessions, next_page_token }))
    }
}

fn required(hook: Option<NewHook>) -> Result<NewHook, Error> {
    hook.ok_or_else(|| Error::invalid("hook", "is missing"))
}

fn refusal(why: Status) -> Outcome {
    Outcome::Refusal(Refusal {
        code: why.code().into(),
        message: why.message().to_owned(),
        reason: status::reason(&why).as_str().to_owned(),
    })
}
