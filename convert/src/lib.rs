//! Converts messages between two versions of a Protobuf package.
//!
//! A [`Mapping`] is a file that says how the versions differ: what has another
//! name, moved, is computed or dropped. Same-named fields need no word. A
//! [`Conversion`] is a mapping proven against the descriptors of both versions:
//! every field of a target gets a value or is named as unset, every field of a
//! source is read or named as dropped, and all types fit. What doesn't come back
//! from a round trip is said in its [`Report`].
//!
//! In reading order: [`mapping`], the file; `pairs`, what is whose counterpart;
//! `rules`, what is said of one message; `plan`, what is done for it; `fit`, which
//! value fits which field; `expression` and `value`, computed values; `planner` and
//! `methods`, from the mapping to plans; `losses`, what a round trip loses; `prove`,
//! all of that; `transform`, from one message to the other; `propose`, a first
//! mapping; `protos`, where descriptors come from;
//! `mappings`, a folder of all that.

mod error;
mod expression;
mod fit;
mod losses;
pub mod mapping;
mod mappings;
mod methods;
mod pairs;
mod path;
mod plan;
mod planner;
mod propose;
mod protos;
mod prove;
mod report;
mod rules;
mod transform;
mod value;

pub use self::{
    error::{Error, InvalidMapping},
    mapping::Mapping,
    mappings::{Counterpart, InvalidMappings, Mappings},
    propose::{Change, Proposal, propose},
    protos::{InvalidProtos, Protos},
    prove::{Conversion, Method},
    report::{Direction, Finding, Report},
    transform::Transform,
};
