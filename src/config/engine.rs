//! The engine option: one engine, or the arms of a live A/B.

use super::error::{found, quoted};
use super::value::{Size, number, size};
use crate::plan::{Arm, Engine};

pub(super) const ENGINE: &str = "auto, splice, copy, ab, or ab with arms and shares such as ab:splice=50,copy-64KiB=50";
const ARMS: &str = "2 to 16 different arms with shares from 1 to 1000, such as ab:splice=50,copy-64KiB=50; \
                    arms are auto, splice, copy, and copy-1KiB to copy-16MiB";
/// What `ab` alone stands for.
const PLAIN: &str = "splice=50,copy-64KiB=50";
/// Most arms of one forward. Each costs every worker about a kilobyte of counters.
const MOST_ARMS: usize = 16;

/// How bytes move, as an option: one engine for all sessions, or arms they are dealt to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineOption {
    /// All sessions alike.
    One(Engine),
    /// Live A/B.
    Ab(Vec<ArmOption>),
}

/// An arm as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArmOption {
    name: String,
    engine: Engine,
    /// `None` is the forward's own.
    copy_buffer: Option<usize>,
    share: u32,
}

impl From<Engine> for EngineOption {
    fn from(engine: Engine) -> Self {
        Self::One(engine)
    }
}

impl EngineOption {
    /// The engine and the arms of a forward with that copy buffer.
    pub(super) fn resolve(self, forward_buffer: usize) -> (Engine, Vec<Arm>) {
        let arms = match self {
            Self::One(engine) => return (engine, Vec::new()),
            Self::Ab(arms) => arms,
        };
        let resolve = |ArmOption { name, engine, copy_buffer, share }| {
            let copy_buffer = copy_buffer.unwrap_or(forward_buffer);
            Arm { name, engine, copy_buffer, share }
        };
        (Engine::default(), arms.into_iter().map(resolve).collect())
    }
}

pub(super) fn engine(text: &str) -> Result<EngineOption, String> {
    let one = match text {
        "auto" => Engine::Auto,
        "splice" => Engine::Splice,
        "copy" => Engine::Copy,
        "ab" => return arms(text, PLAIN),
        _ => return text.strip_prefix("ab:").map_or_else(|| Err(found(text, ENGINE)), |list| arms(text, list)),
    };
    Ok(one.into())
}

/// `list` is the part of `text` that holds the arms.
fn arms(text: &str, list: &str) -> Result<EngineOption, String> {
    let fault = |what: String| Err(format!("found {what} in {}; allowed: {ARMS}", quoted(text)));
    let mut arms: Vec<ArmOption> = Vec::new();
    for written in list.split(',') {
        let Some((name, share)) = written.split_once('=') else {
            return fault(format!("{} without a share", quoted(written)));
        };
        let Some((name, engine, copy_buffer)) = kind(name) else { return fault(format!("arm {}", quoted(name))) };
        let Ok(share) = number(share, 1, 1000, ARMS) else { return fault(format!("share {}", quoted(share))) };
        if arms.iter().any(|arm| arm.name == name) {
            return fault(format!("arm {} a second time", quoted(&name)));
        }
        if arms.len() == MOST_ARMS {
            return fault(format!("more than {MOST_ARMS} arms"));
        }
        arms.push(ArmOption { name, engine, copy_buffer, share: u32::try_from(share).unwrap_or(1000) });
    }
    if arms.len() < 2 {
        return fault("a single arm".to_owned());
    }
    Ok(EngineOption::Ab(arms))
}

/// An arm's one true name, its engine and its copy buffer where it has one of its own.
fn kind(name: &str) -> Option<(String, Engine, Option<usize>)> {
    let engine = match name {
        "auto" => Engine::Auto,
        "splice" => Engine::Splice,
        "copy" => Engine::Copy,
        _ => {
            let bytes = size(name.strip_prefix("copy-")?, 1 << 10, 16 << 20, ARMS).ok()?;
            return Some((format!("copy-{}", Size(bytes)), Engine::Copy, Some(bytes)));
        }
    };
    Some((name.to_owned(), engine, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(text: &str) -> Vec<(String, Engine, usize, u32)> {
        let (_, arms) = engine(text).unwrap().resolve(32 << 10);
        arms.into_iter().map(|arm| (arm.name, arm.engine, arm.copy_buffer, arm.share)).collect()
    }

    #[test]
    fn one_engine_has_no_arms() {
        for (text, one) in [("auto", Engine::Auto), ("splice", Engine::Splice), ("copy", Engine::Copy)] {
            assert_eq!(engine(text).unwrap().resolve(1024), (one, Vec::new()));
        }
    }

    #[test]
    fn arms_take_the_forwards_copy_buffer_unless_they_name_one() {
        let arm = |name: &str, engine, buffer, share| (name.to_owned(), engine, buffer, share);
        assert_eq!(
            resolved("ab"),
            [arm("splice", Engine::Splice, 32 << 10, 50), arm("copy-64KiB", Engine::Copy, 65536, 50)]
        );
        assert_eq!(
            resolved("ab:copy=1,auto=1000,copy-1536=3,copy-65536=2"),
            [
                arm("copy", Engine::Copy, 32 << 10, 1),
                arm("auto", Engine::Auto, 32 << 10, 1000),
                arm("copy-1536", Engine::Copy, 1536, 3),
                arm("copy-64KiB", Engine::Copy, 65536, 2),
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let many: Vec<String> = (1..=17).map(|kib| format!("copy-{kib}KiB=1")).collect();
        let many = format!("ab:{}", many.join(","));
        for (text, what) in [
            ("ab:", "found \"\" without a share in \"ab:\"; allowed: 2 to 16"),
            ("ab:splice", "found \"splice\" without a share"),
            ("ab:splice=50", "found a single arm"),
            ("ab:splice=50,", "found \"\" without a share"),
            ("ab:splice=0,copy=1", "found share \"0\""),
            ("ab:splice=1001,copy=1", "found share \"1001\""),
            ("ab:splice=-1,copy=1", "found share \"-1\""),
            ("ab:splice=1=2,copy=1", "found share \"1=2\""),
            ("ab:splice=1,spliced=1", "found arm \"spliced\""),
            ("ab:splice=1, copy=1", "found arm \" copy\""),
            ("ab:splice=1,copy-=1", "found arm \"copy-\""),
            ("ab:splice=1,copy-1000=1", "found arm \"copy-1000\""),
            ("ab:splice=1,copy-17MiB=1", "found arm \"copy-17MiB\""),
            ("ab:copy-64KiB=1,copy-65536=1", "found arm \"copy-64KiB\" a second time"),
            (&many, "found more than 16 arms"),
            ("abc", "found \"abc\"; allowed: auto, splice, copy, ab"),
        ] {
            let message = engine(text).unwrap_err();
            assert!(message.starts_with(what) && message.contains("; allowed: "), "{text}: {message}");
        }
    }
}
