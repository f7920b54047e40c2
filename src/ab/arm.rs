//! The names of what is compared.

use std::fmt;
use std::str::FromStr;

use crate::config::{self, Size};

/// One of the things compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arm {
    /// No forwarder at all: the limit of this host.
    Direct,
    /// Through pipes.
    Splice,
    /// Through memory, with that many bytes a read.
    Copy(usize),
    /// Whatever suits the traffic.
    Auto,
}

impl Arm {
    /// What `spliced ab` compares unless told otherwise.
    pub const DEFAULT: [Self; 6] =
        [Self::Direct, Self::Splice, Self::Copy(8 << 10), Self::Copy(16 << 10), Self::Copy(64 << 10), Self::Auto];

    /// Engine and copy buffer as the forwarder's options; `None` without a forwarder.
    pub(super) fn options(self) -> Option<Vec<String>> {
        let option = |engine: &str| vec!["--engine".to_owned(), engine.to_owned()];
        match self {
            Self::Direct => None,
            Self::Splice => Some(option("splice")),
            Self::Auto => Some(option("auto")),
            Self::Copy(size) => {
                let mut options = option("copy");
                options.extend(["--copy-buffer".to_owned(), Size(size).to_string()]);
                Some(options)
            }
        }
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.pad("direct"),
            Self::Splice => f.pad("splice"),
            Self::Auto => f.pad("auto"),
            Self::Copy(size) => f.pad(&format!("copy-{}", Size(*size))),
        }
    }
}

impl FromStr for Arm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "direct" => Ok(Self::Direct),
            "splice" => Ok(Self::Splice),
            "auto" => Ok(Self::Auto),
            "copy" => Ok(Self::Copy(64 << 10)),
            _ => match text.strip_prefix("copy-") {
                Some(size) => config::size(size, 1 << 10, 16 << 20, "copy-1KiB to copy-16MiB").map(Self::Copy),
                None => Err(format!("found {text:?}; allowed: direct, splice, auto, copy-SIZE such as copy-64KiB")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_read_back_as_they_are_written() {
        for arm in Arm::DEFAULT {
            assert_eq!(arm.to_string().parse(), Ok(arm));
        }
        assert_eq!("copy".parse(), Ok(Arm::Copy(65536)));
        assert_eq!("copy-1000".parse::<Arm>().ok(), None);
        for bad in ["", "spliced", "copy-", "copy-17MiB", "copy-0", "Splice"] {
            assert!(bad.parse::<Arm>().is_err(), "{bad}");
        }
    }
}
