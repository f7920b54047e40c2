//! What the links of a topology are like: packet size, offloads, rate, loss.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Settings of every link, in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Links {
    /// Largest packet in bytes; `None` leaves the kernel's 1500.
    pub mtu: Option<u32>,
    /// Whether segments and packets may be larger than that on their way through a device (TSO, GSO, GRO).
    pub offloads: bool,
    /// Most bits per second.
    pub rate: Option<Rate>,
    /// Packets that get lost.
    pub loss: Option<Loss>,
}

impl fmt::Display for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "offloads {}", if self.offloads { "on" } else { "off" })?;
        if let Some(mtu) = self.mtu {
            write!(f, ", mtu {mtu}")?;
        }
        if let Some(rate) = self.rate {
            write!(f, ", rate {rate}")?;
        }
        self.loss.map_or(Ok(()), |loss| write!(f, ", loss {loss}"))
    }
}

impl Default for Links {
    fn default() -> Self {
        Self { mtu: None, offloads: true, rate: None, loss: None }
    }
}

/// Bits per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rate(pub u64);

/// Share of packets in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Loss(pub u32);

/// What [`mtu`] takes.
pub const MTU: &str = "a number of bytes from 576 to 65535";
/// What [`offloads`] takes.
pub const OFFLOADS: &str = "on, off";
/// What [`Rate::parse`] takes.
pub const RATE: &str = "bits per second from 100kbit to 1000gbit, such as 100mbit, 1gbit or 2.5gbit";
/// What [`Loss::parse`] takes.
pub const LOSS: &str = "a share from 0.0001% to 50%, such as 0.1%";

/// Reads the size of the largest packet.
///
/// # Errors
/// What was found and what is allowed.
pub fn mtu(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|mtu| (576..=65535).contains(mtu)).ok_or_else(|| found(text, MTU))
}

/// Reads `on` or `off`.
///
/// # Errors
/// What was found and what is allowed.
pub fn offloads(text: &str) -> Result<bool, String> {
    match text {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err(found(text, OFFLOADS)),
    }
}

impl Rate {
    /// Reads a rate with its unit; K, M and G are powers of 1000.
    ///
    /// # Errors
    /// What was found and what is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let unit_at = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
        let factor = match &lower[unit_at..] {
            "kbit" | "k" => 1e3,
            "mbit" | "m" => 1e6,
            "gbit" | "g" => 1e9,
            _ => return Err(found(text, RATE)),
        };
        let bits = lower[..unit_at].parse::<f64>().ok().map(|number| (number * factor).round());
        let bits = bits.filter(|bits| (1e5..=1e12).contains(bits)).ok_or_else(|| found(text, RATE))?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the range just checked")]
        Ok(Self(bits as u64))
    }

    /// Bytes a token bucket must hold so that it fills up between two ticks of a slow clock (4 ms), and at least two
    /// of the largest packets that segmentation offload makes.
    #[must_use]
    pub fn burst(self) -> u64 {
        (self.0 / 8 / 250).max(128 << 10)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, name) in [(1_000_000_000, "gbit"), (1_000_000, "mbit"), (1_000, "kbit")] {
            if self.0.is_multiple_of(unit) {
                return write!(f, "{}{name}", self.0 / unit);
            }
        }
        write!(f, "{}bit", self.0)
    }
}

impl Loss {
    /// Reads a share in percent, with or without the sign.
    ///
    /// # Errors
    /// What was found and what is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let number = text.strip_suffix('%').unwrap_or(text).trim_end();
        let plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let millionths = number.parse::<f64>().ok().filter(|_| plain).map(|percent| (percent * 1e4).round());
        let millionths = millionths.filter(|n| (1.0..=5e5).contains(n)).ok_or_else(|| found(text, LOSS))?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the range just checked")]
        Ok(Self(millionths as u32))
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", f64::from(self.0) / 1e4)
    }
}

fn found(text: &str, allowed: &str) -> String {
    let cut: String = text.chars().take(80).collect();
    format!("found {cut:?}; allowed: {allowed}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_losses() {
        for (text, bits) in [("1gbit", 1_000_000_000), ("2.5Gbit", 2_500_000_000), ("100m", 100_000_000)] {
            assert_eq!(Rate::parse(text), Ok(Rate(bits)), "{text}");
            assert_eq!(Rate::parse(&Rate(bits).to_string()), Ok(Rate(bits)), "read back");
        }
        for text in ["", "1", "gbit", "-1gbit", "1..5gbit", "99999gbit", "1gbps", "1kbit"] {
            assert!(Rate::parse(text).is_err(), "{text}");
        }
        assert_eq!(Loss::parse("0.1%"), Ok(Loss(1000)));
        assert_eq!(Loss::parse("50"), Ok(Loss(500_000)));
        assert_eq!(Loss(1000).to_string(), "0.1%");
        for text in ["", "%", "0%", "51%", "-1%", "inf", "nan", "1e1"] {
            assert!(Loss::parse(text).is_err(), "{text}");
        }
        assert!(mtu("575").is_err() && mtu("1500") == Ok(1500) && mtu("65536").is_err());
    }
}
