//! How deep the brackets of a YAML text nest, found in one pass before libyaml sees it.

use super::error::{Fault, Mark};

/// Most brackets that may be open at once; serde_yaml stops there too, but only after libyaml, which takes time in
/// the square of the depth.
const DEEPEST: usize = 128;

/// Refuses text whose brackets nest so deep that it cannot be meant.
pub(super) fn refuse_deep(text: &str) -> Result<(), Fault> {
    let mut depth = Depth::default();
    for (offset, byte) in text.bytes().enumerate() {
        depth.step(byte);
        if depth.open > DEEPEST {
            return Err(too_deep(Mark::Offset(offset)));
        }
    }
    Ok(())
}

/// Follows brackets through YAML as libyaml's scanner does, but knows no quotes and block texts over several lines
/// outside of brackets; there it may take text for brackets, and then a strange file is refused.
#[derive(Default)]
struct Depth {
    open: usize,
    within: Within,
    /// The byte before, 0 at the start.
    before: u8,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Within {
    /// Where a value may begin.
    #[default]
    Gap,
    /// Behind `-`, `?` or `:`, which is an indicator only before a blank.
    Indicator,
    /// A tag, an anchor or an alias.
    Property,
    Plain,
    Single,
    Double,
    /// Behind a backslash in double quotes.
    Escape,
    Comment,
}

impl Depth {
    fn step(&mut self, byte: u8) {
        let blank = matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        let blank_before = matches!(self.before, 0 | b' ' | b'\t' | b'\r' | b'\n');
        let in_flow = self.open > 0;
        let colon_before = std::mem::replace(&mut self.before, byte) == b':';
        self.within = match (self.within, byte) {
            (Within::Escape, _) => Within::Double,
            (Within::Double, b'\\') => Within::Escape,
            (Within::Double, b'"') | (Within::Single, b'\'') | (Within::Comment, b'\n') => Within::Gap,
            (_, b'\n') if !in_flow => Within::Gap,
            (quoted @ (Within::Double | Within::Single | Within::Comment), _) => quoted,
            (_, b'#') if blank_before => Within::Comment,
            (_, b'[' | b'{') => {
                self.open += 1;
                Within::Gap
            }
            (_, b']' | b'}') => {
                self.open = self.open.saturating_sub(1);
                Within::Gap
            }
            (_, b',') if in_flow => Within::Gap,
            (Within::Indicator | Within::Property, _) if blank => Within::Gap,
            (Within::Plain, _) if blank && colon_before => Within::Gap,
            (Within::Gap, _) if blank => Within::Gap,
            (Within::Gap, b'"') => Within::Double,
            (Within::Gap, b'\'') => Within::Single,
            (Within::Gap, b'!' | b'&' | b'*') => Within::Property,
            (Within::Gap, b'?' | b':') if in_flow => Within::Gap,
            (Within::Gap, b'-' | b'?' | b':') => Within::Indicator,
            (Within::Property, _) => Within::Property,
            _ => Within::Plain,
        };
    }
}

pub(super) fn too_deep(at: Mark) -> Fault {
    Fault::new(at, format!("found more than {DEEPEST} levels of nesting; allowed: at most {DEEPEST}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depth(text: &str) -> usize {
        let mut depth = Depth::default();
        text.bytes().for_each(|byte| depth.step(byte));
        depth.open
    }

    #[test]
    fn brackets_in_quotes_and_comments_do_not_count() {
        for text in [
            "a: [1, \"[::]:9000\"]",
            "a: ['[', \"[\\\"[\", b] # [[",
            "# [\n- x\n",
            "a: {b: [c], \"d\":\"[\", 'e': 'it''s ['}",
            "- \"[\"\n- '['\n",
            "a: [!t \"[\", &b \"[\", *c]",
        ] {
            assert_eq!(depth(text), 0, "{text}");
        }
    }

    #[test]
    fn no_quote_hides_a_bracket_that_opens() {
        for text in [
            "[a \"b, [",
            "[\"]\", [",
            "[']', [",
            "[!t \"]\", [",
            "[a - \"b, [",
            "[-\", [",
            "[{\"a\":\"]\"",
            "[it's, [",
            "a \"b: [[",
            "- - \"x\": [[",
            "--- [[",
            "? [[",
        ] {
            assert_eq!(depth(text), 2, "{text}");
        }
    }
}
