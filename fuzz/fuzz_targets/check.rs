//! What must hold for any text.

use spliced::config::{Format, Lookup, Overrides, parse_as, render};

/// Any text is a plan that reads back from its own YAML, or one line of error with a place in the text.
pub(crate) fn check(format: Format, text: &str) {
    let overrides = Overrides::default();
    match parse_as(format, "FILE", text, &overrides, &Lookup::fixed()) {
        Ok(plan) => {
            let yaml = render(&plan);
            let again = parse_as(Format::Yaml, "FILE", &yaml, &overrides, &Lookup::fixed());
            assert_eq!(again.as_ref(), Ok(&plan), "{yaml}");
        }
        Err(error) => {
            assert_eq!(error.to_string().lines().count(), 1, "{error}");
            assert!(error.message.contains("; allowed: "), "{error}");
            let (_, line, column) = error.place.expect("every error in a file has a place");
            assert!(column >= 1 && (1..=text.split('\n').count() + 1).contains(&line), "{line}:{column}");
        }
    }
}
