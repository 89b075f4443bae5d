//! Quantities that carry their unit.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A number of bytes. In JSON and in files it is written as a tenant writes it: `500Mi`, `1Gi`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes(pub u64);

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    #[error("{0:?} is no size: write a whole number and one of Ki, Mi, Gi, Ti (as in 500Mi or 1Gi)")]
    Form(String),
    #[error("{0:?} is out of range: no size can be 16777216Ti or more")]
    Large(String),
}

const UNITS: [(&str, u64); 8] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
];

impl Bytes {
    /// Whole mebibytes, rounded up.
    pub fn mib(self) -> u64 {
        self.0.div_ceil(1 << 20)
    }
}

impl Bytes {
    /// The same in whole mebibytes, rounded up: for people.
    pub fn rough(self) -> Self {
        Self(self.mib().saturating_mul(1 << 20))
    }
}

impl FromStr for Bytes {
    type Err = SizeError;
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let shown = || text.chars().take(40).collect();
        let (unit, factor) = UNITS.iter().find(|(unit, _)| text.ends_with(unit)).ok_or_else(|| SizeError::Form(shown()))?;
        let digits = &text[..text.len() - unit.len()];
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(SizeError::Form(shown()));
        }
        digits.parse::<u64>().ok().and_then(|n| n.checked_mul(*factor)).map(Bytes).ok_or_else(|| SizeError::Large(shown()))
    }
}

impl TryFrom<String> for Bytes {
    type Error = SizeError;
    fn try_from(text: String) -> Result<Self, SizeError> {
        text.parse()
    }
}

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> String {
        bytes.to_string()
    }
}

impl fmt::Display for Bytes {
    /// The largest binary unit that divides the number, so that parsing gives the same number back. What no unit divides is
    /// rounded up to whole kibibytes: every size here is one of a file or of memory.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, factor) in UNITS[..4].iter().rev() {
            if self.0 >= *factor && self.0.is_multiple_of(*factor) {
                return write!(f, "{}{unit}", self.0 / factor);
            }
        }
        write!(f, "{}Ki", self.0.div_ceil(1 << 10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_unit_and_nothing_else() {
        for (text, bytes) in [("500Mi", 500 << 20), ("1Gi", 1 << 30), ("64Ki", 64 << 10), ("2G", 2_000_000_000), ("0Mi", 0)] {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(bytes), "{text}");
        }
        for bad in ["", "1", "Gi", "-1Gi", "1.5Gi", "1 Gi", "1gi", "99999999999Ti", "0x1Gi", "1GiB"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
        assert_eq!(Bytes(1536 << 20).to_string(), "1536Mi");
    }
}
