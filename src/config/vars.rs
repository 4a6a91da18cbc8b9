//! Where settings come from: the environment, then files in $CREDENTIALS_DIRECTORY, then `.env`.
//!
//! Reading collects problems instead of stopping at the first; a problem names the variable and the mend, never a value.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::dotenv;
use crate::secret::Secret;

/// A credential file larger than this is refused, in bytes.
const CREDENTIAL_MAX: u64 = 64 << 10;

/// One mistake in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which variable.
    pub name: String,
    /// What is wrong and what to do. Never a value.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.what)
    }
}

type Lookup = Box<dyn Fn(&str) -> Option<String>>;

/// Where a module's settings are read from.
pub struct Vars {
    lookup: Lookup,
    problems: Vec<Problem>,
}

impl Vars {
    /// From a map, for tests and `dev`.
    pub fn from_map(map: HashMap<String, String>) -> Self {
        Self { lookup: Box::new(move |name| map.get(name).cloned()), problems: Vec::new() }
    }

    /// From this process's surroundings.
    pub fn from_process() -> Self {
        let mut problems = Vec::new();
        let dotenv = dotenv::read(Path::new(".env"), &mut problems);
        let folder = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let mut credentials = HashMap::new();
        if let Some(folder) = folder {
            read_credentials(&folder, &mut credentials, &mut problems);
        }
        let lookup = move |name: &str| {
            let own = std::env::var(name).ok();
            // an empty variable takes a value of .env back, but must not hide a secret that was handed over
            let text = own.clone().filter(|text| !text.trim().is_empty());
            text.or_else(|| credentials.get(name).cloned()).or(own).or_else(|| dotenv.get(name).cloned())
        };
        Self { lookup: Box::new(lookup), problems }
    }

    /// The value, trimmed; an empty one counts as not set.
    pub fn text(&self, name: &str) -> Option<String> {
        (self.lookup)(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty())
    }

    /// A secret: as [`Vars::text`]; control characters are a problem, since it goes into a header.
    pub fn secret(&mut self, name: &str) -> Option<Secret> {
        let text = self.text(name)?;
        if text.chars().any(char::is_control) {
            self.problem(name, "contains a line break or another control character; store it on one line");
            return None;
        }
        Some(Secret::new(text))
    }

    /// Notes a mistake.
    pub fn problem(&mut self, name: &str, what: impl Into<String>) {
        self.problems.push(Problem { name: name.to_owned(), what: what.into() });
    }

    /// All mistakes so far.
    pub fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems;
        let mut seen = HashSet::new();
        problems.retain(|problem| seen.insert(problem.to_string()));
        problems
    }

    /// `true`/`false`, also 1/0, yes/no, on/off in any case.
    pub fn flag(&mut self, name: &str, default: bool) -> bool {
        let Some(text) = self.text(name) else { return default };
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => true,
            "false" | "0" | "no" | "off" => false,
            _ => {
                self.problem(name, "must be true or false");
                default
            }
        }
    }

    /// A whole number within bounds.
    pub fn number(&mut self, name: &str, default: u64, least: u64, most: u64) -> u64 {
        let Some(text) = self.text(name) else { return default };
        match text.parse() {
            Ok(number) if (least..=most).contains(&number) => number,
            _ => {
                self.problem(name, format!("must be a whole number from {least} to {most}"));
                default
            }
        }
    }

    /// A duration: `30`, `30s` (both seconds), `250ms`, `5m`, `23h`, `8d`.
    pub fn duration(&mut self, name: &str, default: Duration, least: Duration, most: Duration) -> Duration {
        let Some(text) = self.text(name) else { return default };
        match parse_duration(&text) {
            Some(duration) if (least..=most).contains(&duration) => duration,
            _ => {
                let (least, most) = (show(least), show(most));
                self.problem(name, format!("must be a time from {least} to {most}, like 30s, 5m, 23h or 8d"));
                default
            }
        }
    }

    /// Anything that parses; `form` says what is expected.
    pub fn parsed<T: FromStr>(&mut self, name: &str, default: T, form: &str) -> T {
        let Some(text) = self.text(name) else { return default };
        text.parse().unwrap_or_else(|_| {
            self.problem(name, format!("must be {form}"));
            default
        })
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit_ms = match text[digits..].trim() {
        "" | "s" => 1000,
        "ms" => 1,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(unit_ms).map(Duration::from_millis)
}

fn show(duration: Duration) -> String {
    let ms = duration.as_millis();
    match ms {
        0 => "0".to_owned(),
        _ if ms.is_multiple_of(86_400_000) => format!("{}d", ms / 86_400_000),
        _ if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        _ if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        _ if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
        _ => format!("{ms}ms"),
    }
}

fn read_credentials(folder: &Path, values: &mut HashMap<String, String>, problems: &mut Vec<Problem>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        let what = "is not a folder that this user can read".to_owned();
        problems.push(Problem { name: "CREDENTIALS_DIRECTORY".to_owned(), what });
        return;
    };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let fits = entry.path().metadata().is_ok_and(|m| m.is_file() && m.len() <= CREDENTIAL_MAX);
        match std::fs::read_to_string(entry.path()) {
            Ok(text) if fits => drop(values.insert(name, text.trim_end_matches(['\r', '\n']).to_owned())),
            _ => {
                problems.push(Problem { name, what: "its credential file can't be read as text".to_owned() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_default_to_seconds() {
        assert_eq!(parse_duration("30"), Some(Duration::from_secs(30)));
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("23h"), Some(Duration::from_secs(23 * 3600)));
        assert_eq!(parse_duration("8 d"), Some(Duration::from_secs(8 * 86400)));
        for bad in ["", "h", "-1", "1.5", "1w", "99999999999999999999"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_credential_file_loses_its_line_end() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("ADMIN_TOKEN"), "abc\n").expect("written");
        let (mut values, mut problems) = (HashMap::new(), Vec::new());
        read_credentials(folder.path(), &mut values, &mut problems);
        assert_eq!(values["ADMIN_TOKEN"], "abc");
        assert!(problems.is_empty(), "{problems:?}");
    }
}
