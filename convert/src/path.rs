//! Paths of fields, such as `address.zip`.

use std::fmt;

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

/// How many fields a path may have.
const LONGEST: usize = 16;

/// A field, with the fields whose messages lead to it. Never empty.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Path(Vec<FieldDescriptor>);

impl Path {
    /// The path that `text` names in `message`.
    pub(crate) fn parse(message: &MessageDescriptor, text: &str) -> Result<Self, String> {
        if text.split('.').count() > LONGEST {
            return Err(format!("a path of more than {LONGEST} fields: `{:.64}…`", text));
        }
        let mut inside = Some(message.clone());
        let mut fields = Vec::new();
        for name in text.split('.') {
            let Some(message) = inside else {
                return Err(format!(
                    "`{text}` leads through `{}`, no single message",
                    Self(fields)
                ));
            };
            let field = message.get_field_by_name(name).ok_or_else(|| {
                format!("`{text}`: `{}` has no field `{name}`", message.full_name())
            })?;
            inside = inside_of(&field);
            fields.push(field);
        }
        Ok(Self(fields))
    }

    /// `field` inside of what is at `outer`.
    pub(crate) fn within(outer: Option<&Self>, field: FieldDescriptor) -> Self {
        let mut fields = outer.map_or_else(Vec::new, |outer| outer.0.clone());
        fields.push(field);
        Self(fields)
    }

    /// The field it leads to.
    pub(crate) fn field(&self) -> &FieldDescriptor {
        &self.0[self.0.len() - 1]
    }

    /// The fields that lead to it.
    pub(crate) fn outer(&self) -> &[FieldDescriptor] {
        &self.0[..self.0.len() - 1]
    }

    /// All of its fields, from the outermost on.
    pub(crate) fn fields(&self) -> &[FieldDescriptor] {
        &self.0
    }

    /// The paths that lead to it, the shortest first.
    pub(crate) fn prefixes(&self) -> impl Iterator<Item = Self> + '_ {
        (1..self.0.len()).map(|length| Self(self.0[..length].to_vec()))
    }

    /// Whether it leads into what is at `other`.
    pub(crate) fn is_below(&self, other: &Self) -> bool {
        self.0.len() > other.0.len() && self.0.starts_with(&other.0)
    }

    /// Whether a message can hold only one of this and `other`: they part at
    /// members of one oneof.
    pub(crate) fn excludes(&self, other: &Self) -> bool {
        let parting = self.0.iter().zip(&other.0).find(|(mine, theirs)| mine != theirs);
        parting.is_some_and(|(mine, theirs)| {
            let oneof = mine.containing_oneof();
            oneof.is_some() && oneof == theirs.containing_oneof()
        })
    }
}

/// The message whose fields a path can go on with behind `field`.
pub(crate) fn inside_of(field: &FieldDescriptor) -> Option<MessageDescriptor> {
    match field.kind() {
        Kind::Message(message) if !field.is_list() && !field.is_map() => Some(message),
        _ => None,
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, field) in self.0.iter().enumerate() {
            let dot = if nth == 0 { "" } else { "." };
            write!(f, "{dot}{}", field.name())?;
        }
        Ok(())
    }
}
