//! Settings of calls, by route: one gRPC method, all methods of a service, or
//! all.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

/// What is set for all routes that have nothing of their own.
const ALL: &str = "*";
/// The end of a route that means all methods of a service.
const METHODS: &str = "/*";
/// How often a call may be tried at most.
const MOST_TRIES: u8 = 10;

/// How calls of one route are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Route {
    /// How long a call may take with all its tries, where the caller set no
    /// deadline; 10 s for methods without streams unless set.
    #[serde(with = "humantime_serde::option")]
    pub timeout: Option<Duration>,
    /// How long one try may take; as long as the call unless set.
    #[serde(with = "humantime_serde::option")]
    pub try_timeout: Option<Duration>,
    /// How often a call is tried, the first time included; 1 to 10, 3 unless
    /// set.
    pub tries: u8,
    /// The pause before a second try, about; twice that before each further
    /// one, up to 1 s. 25 ms unless set.
    #[serde(with = "humantime_serde")]
    pub backoff: Duration,
    /// How many failed calls in a row open the breaker; 5 unless set, 0 for no
    /// breaker.
    pub breaker_failures: u32,
    /// How long an open breaker lets no call through; 30 s unless set.
    #[serde(with = "humantime_serde")]
    pub breaker_open: Duration,
}

impl Default for Route {
    fn default() -> Self {
        Self {
            timeout: None,
            try_timeout: None,
            tries: 3,
            backoff: Duration::from_millis(25),
            breaker_failures: 5,
            breaker_open: Duration::from_secs(30),
        }
    }
}

/// The settings of all routes. The most exact route that is named counts, and
/// counts alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "BTreeMap<String, Route>")]
pub struct Routes {
    by_path: BTreeMap<String, Route>,
}

impl Routes {
    /// The settings of the method at `path`, such as
    /// `/omnibridge.hooks.v1.HookReceiver/Receive`.
    pub fn of(&self, path: &str) -> Route {
        if self.by_path.is_empty() {
            return Route::default();
        }
        let of_service =
            || self.by_path.iter().find(|(name, _)| covers(name, path)).map(|(_, route)| route);
        let named = self.by_path.get(path).or_else(of_service).or_else(|| self.by_path.get(ALL));
        named.copied().unwrap_or_default()
    }
}

impl Routes {
    /// These, with those of `upper` in place of their namesakes.
    pub(super) fn overlaid(&self, upper: &Self) -> Self {
        let mut by_path = self.by_path.clone();
        by_path.extend(upper.by_path.iter().map(|(name, route)| (name.clone(), *route)));
        Self { by_path }
    }
}

impl TryFrom<BTreeMap<String, Route>> for Routes {
    type Error = String;

    fn try_from(by_path: BTreeMap<String, Route>) -> Result<Self, String> {
        for (name, route) in &by_path {
            if name != ALL && !is_path(name) {
                return Err(format!(
                    "`{name}` is no route: expected `/package.Service/Method`, \
                     `/package.Service/*` or `*`"
                ));
            }
            if route.tries == 0 || route.tries > MOST_TRIES {
                return Err(format!("`{name}`: `tries` is {}, not 1 to {MOST_TRIES}", route.tries));
            }
            if [route.timeout, route.try_timeout].contains(&Some(Duration::ZERO)) {
                return Err(format!("`{name}`: a timeout of nothing lets no call through"));
            }
        }
        Ok(Self { by_path })
    }
}

/// Whether `name` is `/package.Service/Method` or `/package.Service/*`.
pub(super) fn is_path(name: &str) -> bool {
    let service_and_method = name.strip_prefix('/').and_then(|rest| rest.split_once('/'));
    service_and_method.is_some_and(|(service, method)| {
        !service.is_empty() && !method.is_empty() && !method.contains('/')
    })
}

/// Whether `name`, one of those, means the method at `path`.
pub(super) fn covers(name: &str, path: &str) -> bool {
    let service = path.rsplit_once('/').map(|(service, _)| service);
    name == path || (service.is_some() && name.strip_suffix(METHODS) == service)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(toml: &str) -> Result<Routes, toml::de::Error> {
        toml::from_str(toml)
    }

    #[test]
    fn the_most_exact_route_counts_alone() {
        let routes = routes(
            "\"*\" = { tries = 1 }\n\"/p.S/*\" = { tries = 2, timeout = \"2s\" }\n\
             \"/p.S/M\" = { tries = 4 }",
        )
        .unwrap();
        assert_eq!(routes.of("/p.S/M"), Route { tries: 4, ..Route::default() });
        let two = Some(Duration::from_secs(2));
        assert_eq!(routes.of("/p.S/N"), Route { tries: 2, timeout: two, ..Route::default() });
        assert_eq!(routes.of("/p.ST/N").tries, 1);
        assert_eq!(Routes::default().of("/p.S/M"), Route::default());
    }

    #[test]
    fn what_can_not_be_meant_is_refused_by_name() {
        for (wrong, named) in [
            ("\"p.S/M\" = {}", "p.S/M"),
            ("\"/p.S\" = {}", "/p.S"),
            ("\"/p.S/M\" = { tries = 0 }", "tries"),
            ("\"/p.S/M\" = { tries = 11 }", "tries"),
            ("\"/p.S/M\" = { timeout = \"0s\" }", "timeout"),
            ("\"/p.S/M\" = { retries = 1 }", "retries"),
        ] {
            let why = routes(wrong).unwrap_err().to_string();
            assert!(why.contains(named), "{why}");
        }
    }
}
