//! YAML text → [`Node`]s, and back from a node to its line and column.
//!
//! serde_yaml keeps positions to itself, but an error raised in a visitor carries the position of the event being
//! visited. So nodes are numbered in the order of visiting, and [`locate`] visits again and fails at the number.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, Visitor};

use super::depth;
use super::error::{Fault, Mark};
use super::node::{Key, Node, Value};

/// Most nodes a file may have once its aliases are expanded: more than 1 MiB of text can hold without aliases.
const MOST_NODES: u32 = 1 << 20;

/// The only document of the text.
///
/// # Errors
/// What is no YAML, nests too deep, has tags, expands without end, or is more than one document.
pub fn parse(text: &str) -> Result<Node, Fault> {
    depth::refuse_deep(text)?;
    let walk = Walk::to(None);
    let mut documents = serde_yaml::Deserializer::from_str(text);
    let Some(document) = documents.next() else {
        return Err(Fault::new(Mark::At(1, 1), "found no YAML document; allowed: one mapping"));
    };
    let node = (&walk).deserialize(document).map_err(|error| walk.fault(&error))?;
    if let Some(second) = documents.next() {
        let stop = Walk::to(Some(0));
        let at = (&stop).deserialize(second).err().and_then(|error| position(&error)).unwrap_or(Mark::At(1, 1));
        return Err(Fault::new(at, "found a second YAML document; allowed: one document"));
    }
    Ok(node)
}

/// Where the node with that number begins.
pub(super) fn locate(text: &str, ordinal: u32) -> Mark {
    let walk = Walk::to(Some(ordinal));
    let document = serde_yaml::Deserializer::from_str(text).next();
    let at = document.and_then(|document| (&walk).deserialize(document).err()).and_then(|error| position(&error));
    at.unwrap_or(Mark::At(1, 1))
}

/// Where the error is, by its offset: libyaml's own lines end at U+2028 and a lone carriage return too, which editors
/// do not count.
fn position(error: &serde_yaml::Error) -> Option<Mark> {
    error.location().map(|at| Mark::Offset(at.index()))
}

/// One visit of a document.
struct Walk {
    /// Nodes visited so far.
    count: Cell<u32>,
    /// The node to fail at.
    stop: Option<u32>,
    /// What this visitor had against the document, in its own words.
    complaint: RefCell<Option<String>>,
}

impl Walk {
    fn to(stop: Option<u32>) -> Self {
        Self { count: Cell::new(0), stop, complaint: RefCell::new(None) }
    }

    /// Numbers the node being visited.
    fn mark<E: serde::de::Error>(&self) -> Result<Mark, E> {
        let ordinal = self.count.get();
        if self.stop == Some(ordinal) {
            return Err(E::custom("found it"));
        }
        if ordinal == MOST_NODES {
            return self
                .complain(format!("found aliases that expand to more than {MOST_NODES} values; allowed: fewer"));
        }
        self.count.set(ordinal + 1);
        Ok(Mark::Node(ordinal))
    }

    fn complain<T, E: serde::de::Error>(&self, message: impl Into<String>) -> Result<T, E> {
        let message = message.into();
        let error = E::custom(&message);
        *self.complaint.borrow_mut() = Some(message);
        Err(error)
    }

    fn node<E: serde::de::Error>(&self, value: Value) -> Result<Node, E> {
        Ok(Node { mark: self.mark()?, value })
    }

    fn fault(&self, error: &serde_yaml::Error) -> Fault {
        // Without a position of its own the error is at, or right behind, the last node.
        let at = position(error).unwrap_or(Mark::Node(self.count.get().saturating_sub(1)));
        if let Some(message) = self.complaint.borrow_mut().take() {
            return Fault::new(at, message);
        }
        let problem = without_position(&error.to_string());
        let message = match problem.as_str() {
            "recursion limit exceeded" => return depth::too_deep(at),
            "repetition limit exceeded" => "found aliases that expand without end; allowed: plain values".to_owned(),
            _ => format!("found text that is not YAML: {problem}; allowed: YAML, such as a line `key: value`"),
        };
        Fault::new(at, message)
    }
}

/// The library's message without the first ` at line X column Y`, which is said in front already.
fn without_position(message: &str) -> String {
    let Some((problem, rest)) = message.split_once(" at line ") else { return super::error::printable(message) };
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    let rest = rest.strip_prefix(" column ").unwrap_or(rest).trim_start_matches(|c: char| c.is_ascii_digit());
    super::error::printable(&format!("{problem}{rest}"))
}

impl<'de> DeserializeSeed<'de> for &Walk {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &Walk {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of a configuration")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Node, E> {
        self.node(Value::Nothing)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Node, E> {
        self.node(Value::Nothing)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Node, E> {
        self.node(Value::Bool(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Node, E> {
        self.node(Value::Number(value.to_string()))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Node, E> {
        self.node(Value::Number(value.to_string()))
    }

    fn visit_u128<E: serde::de::Error>(self, value: u128) -> Result<Node, E> {
        self.node(Value::Number(value.to_string()))
    }

    fn visit_i128<E: serde::de::Error>(self, value: i128) -> Result<Node, E> {
        self.node(Value::Number(value.to_string()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Node, E> {
        self.node(Value::Number(format!("{value:?}")))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Node, E> {
        self.node(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mark = self.mark()?;
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Node { mark, value: Value::List(items) })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mark = self.mark()?;
        let mut entries = Vec::new();
        while let Some(key) = access.next_key_seed(KeySeed(self))? {
            entries.push((key, access.next_value_seed(self)?));
        }
        Ok(Node { mark, value: Value::Map(entries) })
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Node, A::Error> {
        self.mark::<A::Error>()?;
        self.complain("found a tag (a word that starts with !); allowed: plain values")
    }
}

/// Reads a key, which is text or taken as text.
struct KeySeed<'a>(&'a Walk);

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for KeySeed<'_> {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Key, E> {
        Ok(Key { mark: self.0.mark()?, text: value.to_owned() })
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Key, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Key, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Key, E> {
        self.visit_str(&format!("{value:?}"))
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Key, E> {
        self.visit_str(if value { "true" } else { "false" })
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Key, E> {
        self.visit_str("")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Key, A::Error> {
        self.0.complain("found a list as a key; allowed: a word")
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<Key, A::Error> {
        self.0.complain("found a mapping as a key; allowed: a word")
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Key, A::Error> {
        self.0.complain("found a tag on a key (a word that starts with !); allowed: a word")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deep_nesting_is_refused_in_little_time() {
        for text in ["[".repeat(1 << 20), "[']',".repeat(200_000), "[!t \"]\",".repeat(100_000), "{a: ".repeat(200_000)]
        {
            let fault = parse(&text).unwrap_err();
            assert!(fault.message.contains("nesting"), "{}", fault.message);
        }
        assert!(parse(&"- ".repeat(500_000)).unwrap_err().message.contains("nesting"));
    }

    #[test]
    fn alias_bombs_are_refused() {
        let wide = format!("a: &a [{}1]\nb: [{}1]\n", "1,".repeat(10_000), "*a,".repeat(100_000));
        let mut doubled = "a0: &a0 [x, x]\n".to_owned();
        for i in 1..60 {
            doubled.push_str(&format!("a{i}: &a{i} [*a{}, *a{}]\n", i - 1, i - 1));
        }
        for text in [wide, doubled, "a: &a [*a]".to_owned()] {
            let fault = parse(&text).unwrap_err();
            assert!(fault.message.contains("alias") || fault.message.contains("nesting"), "{}", fault.message);
        }
    }

    #[test]
    fn every_node_is_found_again() {
        let text = "a: 1\nb:\n  - {c: d, e: [f]}\n  - g\n";
        let root = parse(text).unwrap();
        let mut places = Vec::new();
        collect(&root, &mut places);
        let found: Vec<_> = places.into_iter().map(|ordinal| locate(text, ordinal).line_column(text)).collect();
        let expected =
            [(1, 1), (1, 1), (1, 4), (2, 1), (3, 3), (3, 5), (3, 6), (3, 9), (3, 12), (3, 15), (3, 16), (4, 5)];
        assert_eq!(found, expected);
    }

    fn collect(node: &Node, places: &mut Vec<u32>) {
        let ordinal = |mark: Mark| if let Mark::Node(ordinal) = mark { ordinal } else { panic!("{mark:?}") };
        places.push(ordinal(node.mark));
        match &node.value {
            Value::List(items) => items.iter().for_each(|item| collect(item, places)),
            Value::Map(entries) => entries.iter().for_each(|(key, value)| {
                places.push(ordinal(key.mark));
                collect(value, places);
            }),
            _ => {}
        }
    }
}
