//! Making text safe for the place it is written to. Names of arms, tools and settings come from users' files.

/// Longest name shown in a table; the whole name stays in `results.json`.
const NAME_CHARS: usize = 60;

/// One line without control characters, and without the marks that turn the direction of writing around.
pub(super) fn plain(text: &str) -> String {
    let odd = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    text.trim()
        .chars()
        .map(|c| {
            if c == '\n' || c == '\t' || c == '\r' {
                ' '
            } else if odd(c) {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// At most `limit` characters, with `…` in place of what was cut off.
pub(super) fn cut(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(limit.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// A name fit for a table or a sentence.
pub(super) fn name(text: &str) -> String {
    let plain = plain(text);
    if plain.is_empty() { "(no name)".into() } else { cut(&plain, NAME_CHARS) }
}

/// For HTML and SVG, between tags and inside quoted attributes.
pub(super) fn html(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c if c.is_control() && c != '\n' => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// For Markdown, in a paragraph, a list or a table cell.
pub(super) fn markdown(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in plain(text).chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '\\' | '|' | '*' | '_' | '`' | '[' | ']' | '#' | '~' | '!' => {
                safe.push('\\');
                safe.push(c);
            }
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_a_user_names_becomes_markup() {
        let evil = "<script>alert(\"x\")</script>&'|`a`[b](c)\n# d\u{202e}\0";
        let safe = html(evil);
        assert!(!safe.contains('<') && !safe.contains('"') && !safe.contains('\'') && !safe.contains('\0'), "{safe}");
        let safe = markdown(evil);
        assert!(
            !safe.contains('<') && !safe.contains('\n') && !safe.contains('\0') && !safe.contains('\u{202e}'),
            "{safe}"
        );
        for c in ['|', '`', '[', ']', '#'] {
            let bare = safe.char_indices().any(|(at, x)| x == c && !safe[..at].ends_with('\\'));
            assert!(!bare, "{c} is not escaped in {safe}");
        }
    }

    #[test]
    fn names_are_cut_at_a_character_and_never_empty() {
        assert_eq!(cut("äöüß", 3), "äö…");
        assert_eq!(name(&"é".repeat(10_000)).chars().count(), NAME_CHARS);
        assert_eq!(name(" \n"), "(no name)");
        assert_eq!(name("copy-64K"), "copy-64K");
    }
}
