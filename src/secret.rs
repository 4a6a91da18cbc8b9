//! A string that is wiped on drop and that no log, error or debug output can show.

use std::fmt;

use zeroize::Zeroizing;

/// A token, key or password. `Debug` prints `***`; there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes ownership of the text; the copy inside is wiped on drop.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself: only where it is used (an Authorization header, a key derivation).
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// All but the last four characters replaced: for phone numbers and ids in logs at info.
pub fn masked(text: &str) -> String {
    let count = text.chars().count();
    let shown = if count > 4 { 4 } else { 0 };
    // a sender chooses them: no line end, no control of a terminal
    let tail: String =
        text.chars().skip(count - shown).map(|c| if c.is_control() { '?' } else { c }).collect();
    format!("…{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_no_readable_debug() {
        assert_eq!(format!("{:?}", Secret::new("EAAG-token")), "***");
    }

    #[test]
    fn a_number_keeps_its_last_four_digits() {
        assert_eq!(masked("16505551234"), "…1234");
        assert_eq!(masked("123"), "…");
        assert_eq!(masked("12345\u{1b}[2J"), "…?[2J");
    }
}
