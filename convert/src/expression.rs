//! Values that are computed, by expressions of CEL.
//!
//! Source: the Common Expression Language, <https://github.com/google/cel-spec>.
//! Enums are numbers in it, unset fields are `null`.

use std::sync::{Arc, LazyLock};

use cel::{
    Context, Env, ExecutionError, IdedExpr, Program,
    common::ast::{EntryExpr, Expr},
};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};

use crate::{path::Path, value};

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));
/// How deep messages are filled that expressions are tried with.
const SAMPLE_DEPTH: u8 = 2;
/// How many bytes an expression may have.
const LONGEST: usize = 4096;

/// An expression over the fields of one message.
pub(crate) struct Expression {
    program: Program,
    /// What it reads.
    pub(crate) reads: Vec<Path>,
    /// Whether it is the name of a field and nothing else, as where a narrower type
    /// is made of a wider one: CEL has nothing to do then.
    is_name: bool,
}

impl Expression {
    /// The expression that `text` is, of fields of `source`, for `target`.
    pub(crate) fn compile(
        text: &str,
        source: &MessageDescriptor,
        target: &FieldDescriptor,
    ) -> Result<Self, String> {
        if text.len() > LONGEST {
            return Err(format!("an expression has {LONGEST} bytes at most"));
        }
        let program = ENV.compile(text).map_err(|why| format!("no expression: {why}"))?;
        let mut names = Names { source, bound: Vec::new(), reads: Vec::new() };
        names.of(program.expression())?;
        let is_name = matches!(program.expression().expr, Expr::Ident(_));
        let expression = Self { program, reads: names.reads, is_name };
        expression.try_on(&expression.sample(source), target)?;
        expression.try_on(&DynamicMessage::new(source.clone()), target)?;
        Ok(expression)
    }

    /// The value for `target` that it gives for `source`; `None` for `null`.
    pub(crate) fn value(
        &self,
        source: &DynamicMessage,
        target: &FieldDescriptor,
    ) -> Result<Option<Value>, String> {
        let value = match &*self.reads {
            [path] if self.is_name => value::read(source, &[path.fields()])?,
            _ => self.program.execute(&self.context(source)?).map_err(|why| why.to_string())?,
        };
        value::write(target, value)
    }

    /// What it reads of `source`, by name.
    fn context(&self, source: &DynamicMessage) -> Result<Context<'_, '_>, String> {
        let mut context = Context::with_env(ENV.clone());
        for field in self.variables() {
            let reads = self.reads.iter().map(Path::fields);
            let reads: Vec<_> = reads.filter(|fields| fields[0] == *field).collect();
            context.add_variable_from_value(field.name(), value::read(source, &reads)?);
        }
        Ok(context)
    }

    fn variables(&self) -> Vec<&FieldDescriptor> {
        let mut variables = Vec::new();
        for path in &self.reads {
            let outermost = &path.fields()[0];
            if !variables.contains(&outermost) {
                variables.push(outermost);
            }
        }
        variables
    }

    /// A message with something in every field that it reads.
    fn sample(&self, source: &MessageDescriptor) -> DynamicMessage {
        let mut made = DynamicMessage::new(source.clone());
        for field in self.variables() {
            made.set_field(field, sample_of_field(field, SAMPLE_DEPTH));
        }
        made
    }

    /// Finds what is wrong with its types. What depends on the data, such as a
    /// division by zero, isn't known before there is any.
    fn try_on(&self, source: &DynamicMessage, target: &FieldDescriptor) -> Result<(), String> {
        match self.program.execute(&self.context(source)?) {
            Ok(value) => value::write(target, value).map(|_| ()),
            Err(
                why @ (ExecutionError::NoSuchOverload(_)
                | ExecutionError::UndeclaredReference(_)
                | ExecutionError::UnexpectedType { .. }
                | ExecutionError::InvalidArgumentCount { .. }
                | ExecutionError::UnsupportedBinaryOperator(..)
                | ExecutionError::ValuesNotComparable(..)),
            ) => Err(why.to_string()),
            Err(_) => Ok(()),
        }
    }
}

/// Finds which fields an expression reads.
struct Names<'s> {
    source: &'s MessageDescriptor,
    /// What macros such as `map` have bound.
    bound: Vec<String>,
    reads: Vec<Path>,
}

impl Names<'_> {
    fn of(&mut self, expression: &IdedExpr) -> Result<(), String> {
        match &expression.expr {
            Expr::Unspecified | Expr::Literal(_) => {}
            Expr::Ident(_) => self.read(expression)?,
            Expr::Select(select) => {
                if select.test {
                    return Err("`has` says nothing here: what is unset is `null`".into());
                }
                if chain(expression).is_some() {
                    self.read(expression)?;
                } else {
                    self.of(&select.operand)?;
                }
            }
            Expr::Call(call) => {
                for part in call.target.iter().map(|target| &**target).chain(&call.args) {
                    self.of(part)?;
                }
            }
            Expr::List(list) => {
                for element in &list.elements {
                    self.of(element)?;
                }
            }
            Expr::Map(map) => self.entries(map.entries.iter().map(|entry| &entry.expr))?,
            Expr::Struct(made) => self.entries(made.entries.iter().map(|entry| &entry.expr))?,
            Expr::Comprehension(of) => {
                // Within one another they take as long as what is given makes them.
                if !self.bound.is_empty() {
                    return Err("a macro such as `map` can't be within another one".into());
                }
                self.of(&of.iter_range)?;
                self.of(&of.accu_init)?;
                let outside = self.bound.len();
                self.bound.extend([of.iter_var.clone(), of.accu_var.clone()]);
                self.bound.extend(of.iter_var2.clone());
                for part in [&of.loop_cond, &of.loop_step, &of.result] {
                    self.of(part)?;
                }
                self.bound.truncate(outside);
            }
        }
        Ok(())
    }

    fn entries<'e>(&mut self, entries: impl Iterator<Item = &'e EntryExpr>) -> Result<(), String> {
        for entry in entries {
            match entry {
                EntryExpr::StructField(field) => self.of(&field.value)?,
                EntryExpr::MapEntry(entry) => {
                    self.of(&entry.key)?;
                    self.of(&entry.value)?;
                }
            }
        }
        Ok(())
    }

    /// Notes the path that a chain such as `address.zip` reads: as far as it
    /// leads through messages, and no further than times, which are values.
    fn read(&mut self, expression: &IdedExpr) -> Result<(), String> {
        let Some(names) = chain(expression) else { return Ok(()) };
        if self.bound.iter().any(|bound| bound == names[0]) {
            return Ok(());
        }
        let mut path: Option<Path> = None;
        let mut inside = Some(self.source.clone());
        for name in names {
            let Some(message) = inside else { break };
            let field = message
                .get_field_by_name(name)
                .ok_or_else(|| format!("`{}` has no field `{name}`", message.full_name()))?;
            inside = crate::path::inside_of(&field).filter(|inside| !value::is_time(inside));
            path = Some(Path::within(path.as_ref(), field));
        }
        self.reads.extend(path);
        Ok(())
    }
}

/// The names of `a.b.c`.
fn chain(expression: &IdedExpr) -> Option<Vec<&str>> {
    match &expression.expr {
        Expr::Ident(name) => Some(vec![name]),
        Expr::Select(select) => {
            let mut names = chain(&select.operand)?;
            names.push(&select.field);
            Some(names)
        }
        _ => None,
    }
}

/// Something for `field`; nothing for messages of messages too deep.
fn sample_of_field(field: &FieldDescriptor, depth: u8) -> Value {
    match &field.kind() {
        Kind::Message(entry) if field.is_map() => {
            let key = sample_of(&entry.map_entry_key_field().kind(), depth);
            let value = sample_of(&entry.map_entry_value_field().kind(), depth);
            Value::Map(key.into_map_key().map(|key: MapKey| (key, value)).into_iter().collect())
        }
        kind if field.is_list() => Value::List(vec![sample_of(kind, depth)]),
        kind => sample_of(kind, depth),
    }
}

fn sample_of(kind: &Kind, depth: u8) -> Value {
    match kind {
        Kind::Double => Value::F64(1.0),
        Kind::Float => Value::F32(1.0),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(1),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(1),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(1),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(1),
        Kind::Bool => Value::Bool(true),
        Kind::String => Value::String("1".into()),
        Kind::Bytes => Value::Bytes("1".into()),
        Kind::Enum(values) => Value::EnumNumber(values.default_value().number()),
        Kind::Message(message) => {
            let mut made = DynamicMessage::new(message.clone());
            for field in message.fields().filter(|_| depth > 0) {
                made.set_field(&field, sample_of_field(&field, depth - 1));
            }
            Value::Message(made)
        }
    }
}
