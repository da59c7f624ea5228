//! What a call wants of the instance that answers it: the package that its
//! method is in, the range of versions that its caller names, and the ranges
//! that the rules choose.

use std::sync::Arc;

use http::{Request, uri::PathAndQuery};
use semver::VersionReq;
use tonic::{Status, body::Body};

use crate::{
    policy::{Order, Policy},
    registry::Instance,
    status::{Reason, status},
};

/// The header in which a caller names the range of versions that may answer.
pub const VERSION_HEADER: &str = "omni-version";
/// The header in which a call that is to be converted names the service it is
/// for.
pub const SERVICE_HEADER: &str = "omni-service";
/// What begins the packages that every server has.
const EVERYBODYS: &str = "grpc.";
/// The header in which such a call names the ranges that the rules chose, the best
/// first.
pub const ORDER_HEADER: &str = "omni-order";
/// How long a range may be, in bytes.
const MAX_RANGE: usize = 512;

/// The range that a channel was made for.
#[derive(Clone, Debug)]
pub(super) struct Range(pub(super) Arc<VersionReq>);

/// The package that a channel is for, in calls of what every server has.
#[derive(Clone, Debug)]
pub(super) struct Spoken(pub(super) Arc<str>);

/// What one call wants.
pub(super) struct Wanted {
    path: PathAndQuery,
    spoken: Option<Arc<str>>,
    range: Option<Arc<VersionReq>>,
    order: Option<Order>,
    may_convert: bool,
}

impl Wanted {
    /// What `request` to `service` by `caller` wants.
    ///
    /// # Errors
    /// When the range it names is none.
    pub(super) fn of(
        request: &Request<Body>,
        service: &str,
        caller: &str,
        policy: &Policy,
    ) -> Result<Self, Status> {
        let order = policy.versions.choose(service, caller, request, &mut rand::rng());
        let may_convert = !policy.trust.converters.is_empty();
        Ok(Self { order, may_convert, ..Self::in_range(request)? })
    }

    /// What `request` wants where no rules count.
    ///
    /// # Errors
    /// As [`Wanted::of`].
    pub(super) fn in_range(request: &Request<Body>) -> Result<Self, Status> {
        let path = request.uri().path_and_query().cloned();
        let path = path.unwrap_or(PathAndQuery::from_static("/"));
        let spoken = request.extensions().get().map(|Spoken(package)| package.clone());
        Ok(Self { path, spoken, range: range(request)?, order: None, may_convert: false })
    }

    /// Any instance of the service.
    pub(super) fn any() -> Self {
        Self {
            path: PathAndQuery::from_static("/"),
            spoken: None,
            range: None,
            order: None,
            may_convert: false,
        }
    }

    /// Whether it may go to who converts, where only another version could answer it.
    pub(super) fn may_convert(&self) -> bool {
        self.may_convert
    }

    /// The range that its caller names.
    pub(super) fn range(&self) -> Option<&VersionReq> {
        self.range.as_deref()
    }

    /// What the rules allow, the best first; `None` stands for any version.
    pub(super) fn order(&self) -> impl Iterator<Item = Option<&VersionReq>> {
        let none = self.order.is_none().then_some(None);
        none.into_iter().chain(self.order.iter().flat_map(|order| order.ranges().map(Some)))
    }

    /// Whether the rules chose.
    pub(super) fn has_order(&self) -> bool {
        self.order.is_some()
    }

    /// The ranges that the rules chose, from `range` on.
    pub(super) fn ranges_from(&self, range: Option<&VersionReq>) -> Vec<VersionReq> {
        let ranges = self.order().flatten();
        ranges.skip_while(|one| Some(*one) != range).cloned().collect()
    }

    /// The package of its method; of those that every server has the one that the
    /// channel is for, if any.
    pub(super) fn package(&self) -> Option<&str> {
        let service = self.path.path().trim_start_matches('/').split('/').next()?;
        match service.rsplit_once('.')? {
            (package, _) if !package.starts_with(EVERYBODYS) => Some(package),
            _ => self.spoken.as_deref(),
        }
    }

    /// The path of its method.
    pub(super) fn path(&self) -> &str {
        self.path.path()
    }
}

fn range(request: &Request<Body>) -> Result<Option<Arc<VersionReq>>, Status> {
    let Some(named) = request.headers().get(VERSION_HEADER) else {
        return Ok(request.extensions().get().map(|Range(range)| range.clone()));
    };
    let text = named.to_str().ok().filter(|text| text.len() <= MAX_RANGE);
    match text.map(VersionReq::parse) {
        Some(Ok(range)) => Ok(Some(Arc::new(range))),
        parsed => {
            let why =
                parsed.and_then(Result::err).map_or_else(String::new, |why| format!(": {why}"));
            let message = format!("`{VERSION_HEADER}` is no range such as `^1.2`{why}");
            Err(status(Reason::InvalidRequest, message))
        }
    }
}

/// Whether `instance` speaks `package`. One that names no package is nobody's
/// we know of, and is believed to speak all.
pub(super) fn speaks(instance: &Instance, package: Option<&str>) -> bool {
    let Some(package) = package else { return true };
    instance.packages.is_empty() || instance.packages.iter().any(|one| one == package)
}

/// Whether `range`, if there is one, has the version of `instance`.
pub(super) fn is_in(instance: &Instance, range: Option<&VersionReq>) -> bool {
    range.is_none_or(|range| range.matches(&instance.version))
}
