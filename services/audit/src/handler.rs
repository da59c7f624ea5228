//! The generated trait: call the logic, answer.

use api::audit::v1::{ListEntriesRequest, ListEntriesResponse, audit_server::Audit};
use tonic::{Request, Response, Status};

use crate::store::Entries;

pub(crate) struct Handler {
    entries: Entries,
}

impl Handler {
    pub(crate) fn new(entries: Entries) -> Self {
        Self { entries }
    }
}

#[tonic::async_trait]
impl Audit for Handler {
    async fn list_entries(
        &self,
        request: Request<ListEntriesRequest>,
    ) -> Result<Response<ListEntriesResponse>, Status> {
        let (entries, next_page_token) = self.entries.list(request.get_ref()).await?;
        Ok(Response::new(ListEntriesResponse { entries, next_page_token }))
    }
}
