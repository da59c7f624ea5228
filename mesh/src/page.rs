//! Pages of a list: their size, and tokens that say where the next one begins.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::status::InvalidField;

/// How many items a page has when the caller doesn't say, and at most.
const DEFAULT_SIZE: u64 = 50;
const MAX_SIZE: u64 = 1000;

/// The page size that was asked for.
///
/// # Errors
/// [`InvalidField`] when it is negative or too large.
pub fn size(asked: i32) -> Result<u64, InvalidField> {
    match u64::try_from(asked) {
        Ok(0) => Ok(DEFAULT_SIZE),
        Ok(size) if size <= MAX_SIZE => Ok(size),
        _ => Err(InvalidField::new("page_size", format!("must be 0 to {MAX_SIZE}"))),
    }
}

/// A token for the place `fields`.
pub fn token<const N: usize>(fields: [&str; N]) -> String {
    URL_SAFE_NO_PAD.encode(fields.join("\n"))
}

/// The place a token stands for; `None` for an empty one.
///
/// # Errors
/// [`InvalidField`], naming `field`, when it is none of ours.
pub fn place<const N: usize>(
    field: &'static str,
    token: &str,
) -> Result<Option<[String; N]>, InvalidField> {
    if token.is_empty() {
        return Ok(None);
    }
    let fields = URL_SAFE_NO_PAD.decode(token).ok().and_then(|text| String::from_utf8(text).ok());
    let fields: Option<[String; N]> = fields
        .and_then(|text| text.split('\n').map(str::to_owned).collect::<Vec<_>>().try_into().ok());
    fields.map(Some).ok_or_else(|| wrong(field))
}

/// As [`place`], for a place that is one number.
///
/// # Errors
/// As [`place`].
pub fn number(field: &'static str, token: &str) -> Result<Option<i64>, InvalidField> {
    let place = place::<1>(field, token)?;
    place.map(|[number]| number.parse().map_err(|_| wrong(field))).transpose()
}

/// That a token in `field` is none of ours.
pub fn wrong(field: &'static str) -> InvalidField {
    InvalidField::new(field, "is not a token that this service gave; take it as it was answered")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_back_to_its_place() {
        assert_eq!(number("t", &token(["42"])).unwrap(), Some(42));
        assert_eq!(place("t", &token(["1", "a"])).unwrap(), Some(["1".to_owned(), "a".to_owned()]));
        assert_eq!(number("t", "").unwrap(), None);
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in ["?", "%", "YQ", "MQoy"] {
            assert!(number("t", text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(size(0).unwrap(), 50);
        assert_eq!(size(1000).unwrap(), 1000);
        assert!(size(-1).is_err() && size(1001).is_err());
    }
}
