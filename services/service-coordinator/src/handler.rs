//! The generated trait: call the logic, answer.

use std::pin::pin;

use api::coordinator::v1::{
    DrainRequest, DrainResponse, GetPlanRequest, GetPlanResponse, GetStatusRequest,
    GetStatusResponse, RestartRequest, RestartResponse, ScaleRequest, ScaleResponse, UnitStatus,
    WatchStatusRequest, WatchStatusResponse, service_coordinator_server::ServiceCoordinator,
};
use futures::{StreamExt as _, stream::BoxStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    board::{Board, Shown},
    supervisor::{Order, Refused},
};

pub(crate) struct Handler {
    board: Board,
    draining: CancellationToken,
}

/// How many states of a unit wait for who follows an order.
const PROGRESS: usize = 16;

type Progress<T> = ReceiverStream<Result<T, Status>>;

impl Handler {
    pub(crate) fn new(board: Board, draining: CancellationToken) -> Self {
        Self { board, draining }
    }

    /// Has `unit` do as `order` says, and tells how it is until it has.
    fn order<T: Send + 'static>(
        &self,
        unit: String,
        order: Order,
        answer: impl Fn(Option<UnitStatus>) -> T + Send + 'static,
    ) -> Result<Response<Progress<T>>, Status> {
        let control = self.board.control_of(&unit)?.clone();
        let (sender, receiver) = mpsc::channel(PROGRESS);
        // For how it ends.
        let place = sender.clone().try_reserve_owned().ok();

        let mut shown = self.board.shown();
        // It ends with the order, which goes on where the caller goes away.
        tokio::spawn(async move {
            let mut done = pin!(control.order(&unit, order));
            let outcome = loop {
                let units = shown.borrow_and_update().units.clone();
                let status = units.into_iter().find(|status| status.name == unit);
                // Who is slow misses some of it.
                let _ = sender.try_send(Ok(answer(status)));
                tokio::select! {
                    outcome = &mut done => break outcome,
                    changed = shown.changed() => if changed.is_err() {
                        break done.await;
                    },
                }
            };
            if let (Err(why), Some(place)) = (outcome, place) {
                place.send(Err(why.into()));
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[tonic::async_trait]
impl ServiceCoordinator for Handler {
    async fn get_plan(
        &self,
        _: Request<GetPlanRequest>,
    ) -> Result<Response<GetPlanResponse>, Status> {
        Ok(Response::new(GetPlanResponse { units: self.board.units() }))
    }

    async fn get_status(
        &self,
        _: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        let Shown { units, leader } = self.board.shown().borrow().clone();
        Ok(Response::new(GetStatusResponse { units, leader }))
    }

    type WatchStatusStream = BoxStream<'static, Result<WatchStatusResponse, Status>>;

    async fn watch_status(
        &self,
        _: Request<WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        let shown = WatchStream::new(self.board.shown());
        let answers =
            shown.map(|Shown { units, leader }| Ok(WatchStatusResponse { units, leader }));
        Ok(Response::new(answers.take_until(self.draining.clone().cancelled_owned()).boxed()))
    }

    type RestartStream = Progress<RestartResponse>;

    async fn restart(
        &self,
        request: Request<RestartRequest>,
    ) -> Result<Response<Self::RestartStream>, Status> {
        let unit = request.into_inner().unit;
        self.order(unit, Order::Restart, |status| RestartResponse { status })
    }

    type DrainStream = Progress<DrainResponse>;

    async fn drain(
        &self,
        request: Request<DrainRequest>,
    ) -> Result<Response<Self::DrainStream>, Status> {
        let unit = request.into_inner().unit;
        self.order(unit, Order::Drain, |status| DrainResponse { status })
    }

    type ScaleStream = Progress<ScaleResponse>;

    async fn scale(
        &self,
        request: Request<ScaleRequest>,
    ) -> Result<Response<Self::ScaleStream>, Status> {
        let ScaleRequest { unit, instances } = request.into_inner();
        let instances = u32::try_from(instances).map_err(|_| Refused::Count)?;
        self.order(unit, Order::Scale(instances), |status| ScaleResponse { status })
    }
}
