//! A file as a tree of marked values, the same for YAML and TOML.

use super::error::{Fault, Mark, quoted};

/// A value and where it stands.
#[derive(Debug)]
pub struct Node {
    /// Where.
    pub mark: Mark,
    /// What.
    pub value: Value,
}

/// What a value is.
#[derive(Debug)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Nothing,
    /// `true` or `false`.
    Bool(bool),
    /// A number as text.
    Number(String),
    /// Any other scalar.
    Text(String),
    /// What has no place in a configuration, such as a date; the text says what.
    Other(&'static str),
    /// Items in order.
    List(Vec<Node>),
    /// Entries in order.
    Map(Vec<(Key, Node)>),
}

/// The key of a map entry.
#[derive(Debug)]
pub struct Key {
    /// Where.
    pub mark: Mark,
    /// What it says.
    pub text: String,
}

impl Node {
    /// An error about this value as a whole.
    #[must_use]
    pub fn wrong(&self, allowed: &str) -> Fault {
        Fault::new(self.mark, format!("found {}; allowed: {allowed}", self.describe()))
    }

    fn describe(&self) -> String {
        match &self.value {
            Value::Nothing => "nothing".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Number(text) => text.clone(),
            Value::Text(text) => quoted(text),
            Value::Other(what) => (*what).to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }

    /// Text or a number, through a parser.
    ///
    /// # Errors
    /// The parser's, or another kind of value.
    pub fn parse<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>, allowed: &str) -> Result<T, Fault> {
        match &self.value {
            Value::Text(text) | Value::Number(text) => parse(text).map_err(|message| Fault::new(self.mark, message)),
            _ => Err(self.wrong(allowed)),
        }
    }

    /// Text alone, through a parser: for names and paths, where a number is more likely a slip.
    ///
    /// # Errors
    /// The parser's, or another kind of value.
    pub fn text<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>, allowed: &str) -> Result<T, Fault> {
        match &self.value {
            Value::Text(text) => parse(text).map_err(|message| Fault::new(self.mark, message)),
            _ => Err(self.wrong(allowed)),
        }
    }

    /// The entries of a map, each key once and known.
    ///
    /// # Errors
    /// An unknown key, a key twice, or another kind of value.
    pub fn entries(&self, allowed: &str, known: &[&str]) -> Result<&[(Key, Node)], Fault> {
        let Value::Map(entries) = &self.value else { return Err(self.wrong(allowed)) };
        let mut seen: Vec<&str> = Vec::with_capacity(known.len());
        for (key, _) in entries {
            if !known.contains(&key.text.as_str()) {
                return Err(unknown(key, known));
            }
            if seen.contains(&key.text.as_str()) {
                let message = format!("found key {} a second time; allowed: each key once", quoted(&key.text));
                return Err(Fault::new(key.mark, message));
            }
            seen.push(&key.text);
        }
        Ok(entries)
    }

    /// The items of a list.
    ///
    /// # Errors
    /// Another kind of value.
    pub fn items(&self, allowed: &str) -> Result<&[Node], Fault> {
        match &self.value {
            Value::List(items) => Ok(items),
            _ => Err(self.wrong(allowed)),
        }
    }

    /// The items of a list, or the value itself as the only one.
    #[must_use]
    pub fn one_or_many(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => std::slice::from_ref(self),
        }
    }
}

/// Parses a value into an option that nothing has set before.
pub(super) fn set_once<T>(
    slot: &mut Option<T>,
    name: &str,
    key: &Key,
    node: &Node,
    parse: impl FnOnce(&str) -> Result<T, String>,
    allowed: &str,
) -> Result<(), Fault> {
    if slot.is_some() {
        return Err(Fault::new(key.mark, format!("found {name} set a second time; allowed: each option once")));
    }
    *slot = Some(node.parse(parse, allowed)?);
    Ok(())
}

fn unknown(key: &Key, known: &[&str]) -> Fault {
    let near = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(candidate, &key.text.to_ascii_lowercase()), *candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min();
    let hint = near.map_or_else(String::new, |(_, name)| format!(" (did you mean \"{name}\"?)"));
    Fault::new(key.mark, format!("found unknown key {}{hint}; allowed: {}", quoted(&key.text), known.join(", ")))
}
