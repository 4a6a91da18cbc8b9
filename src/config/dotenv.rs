//! `.env` in the working directory, read as python-dotenv reads it: of `$` only `${NAME}` means something.
//!
//! The crate `dotenvy` replaces `$name` too, and what it does not know by nothing, so that a secret with a `$` in it
//! would lose its end. So each other `$` is escaped before it sees the text, and a `${NAME}` that nothing is known of
//! is a problem.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::vars::Problem;

/// The largest `.env`, in bytes.
const DOTENV_MAX: u64 = 1 << 20;

/// Its variables; none where there is no such file.
pub fn read(path: &Path, problems: &mut Vec<Problem>) -> HashMap<String, String> {
    let mut values = HashMap::new();
    let Ok(metadata) = path.metadata() else { return values };
    let mut problem = |what: &str| {
        problems.push(Problem { name: ".env".to_owned(), what: what.to_owned() });
    };
    // a container's mount of a file that is not there makes a folder
    if !metadata.is_file() || metadata.len() > DOTENV_MAX {
        problem("is no file of settings in the working directory; remove it");
        return values;
    }
    let Ok(bytes) = std::fs::read(path) else {
        problem("can't be read");
        return values;
    };
    let Ok(text) = String::from_utf8(bytes) else {
        problem("is not text in UTF-8");
        return values;
    };
    let mut unknown = Vec::new();
    for line in dotenvy::from_read_iter(escaped(&text, &mut unknown).as_bytes()) {
        match line {
            Ok((name, value)) => drop(values.insert(name, value)),
            // the error's text holds the line, and the line may hold a secret
            Err(_) => problem("has a line that is not NAME=value (quote values with spaces)"),
        }
    }
    problems.extend(unknown);
    values
}

/// Where in the text.
#[derive(Clone, Copy)]
enum At {
    /// Before a line's `=`; the index of the line's beginning.
    Name(usize),
    /// Between the `=` and its value.
    Before,
    Bare,
    /// In double quotes.
    Weak,
    /// In single quotes.
    Strong,
    /// Behind a value.
    Behind,
    Comment,
}

/// The text with `\` before each `$` that is meant as written, and without comments, in which quotes mean nothing.
fn escaped(text: &str, unknown: &mut Vec<Problem>) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut at, mut name, mut known) = (At::Name(0), "", HashSet::new());
    let mut next = 0;
    while let Some(c) = text[next..].chars().next() {
        let here = next;
        next += c.len_utf8();
        at = match (at, c) {
            // a quoted value may have several lines
            (At::Name(_) | At::Before | At::Bare | At::Behind | At::Comment, '\n') => At::Name(next),
            (At::Name(line), '=') => {
                known.insert(name);
                // the one behind `export`
                name = text[line..here].split_whitespace().last().unwrap_or_default();
                At::Before
            }
            (At::Name(line), '#') if text[line..here].trim().is_empty() => At::Comment,
            (At::Before | At::Behind, '#') => At::Comment,
            (At::Bare, ' ' | '\t') => At::Behind,
            (At::Before, _) if c.is_whitespace() => At::Before,
            (At::Before | At::Bare, '"') => At::Weak,
            (At::Before | At::Bare, '\'') => At::Strong,
            (At::Weak, '"') | (At::Strong, '\'') => At::Bare,
            (At::Before | At::Bare | At::Weak, '\\') => {
                next += text[next..].chars().next().filter(|c| *c != '\n').map_or(0, char::len_utf8);
                if let At::Weak = at { At::Weak } else { At::Bare }
            }
            (At::Before | At::Bare | At::Weak, '$') => {
                match reference(&text[next..]) {
                    Some(of) => {
                        next += of.len() + "{}".len();
                        if of.is_empty() || std::env::var(of).is_err() && !known.contains(of) {
                            unknown.push(problem(name));
                        }
                    }
                    None => out.push('\\'),
                }
                if let At::Weak = at { At::Weak } else { At::Bare }
            }
            (At::Before, _) => At::Bare,
            (at, _) => at,
        };
        if !matches!(at, At::Comment) {
            out.push_str(&text[here..next]);
        }
    }
    // a space at the very end would make its last line an error
    out.push('\n');
    out
}

/// NAME, where `{NAME}` follows in the same line.
fn reference(rest: &str) -> Option<&str> {
    let line = rest.strip_prefix('{')?.split('\n').next()?;
    Some(line.split_once('}')?.0)
}

/// What stands in the braces may be a part of a secret.
fn problem(name: &str) -> Problem {
    let what = "has in .env a ${..} with a name that is set nowhere above it; if it is meant as written, put the value \
                in single quotes";
    Problem { name: name.to_owned(), what: what.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> (HashMap<String, String>, Vec<Problem>) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join(".env");
        std::fs::write(&file, text).expect("written");
        let mut problems = Vec::new();
        (read(&file, &mut problems), problems)
    }

    #[test]
    fn a_dollar_is_taken_as_written_however_the_value_is_quoted() {
        for (text, expected) in [
            ("A=pa$word9", "pa$word9"),
            ("A=\"pa$word9\"", "pa$word9"),
            ("A='pa$word9'", "pa$word9"),
            (r"A=pa\$word9", "pa$word9"),
            ("A=\"pa\\$word9\"", "pa$word9"),
            (r"A='pa\$word9'", r"pa\$word9"),
            ("export A = $1$$PATH$ # it's", "$1$$PATH$"),
            ("A=\"say \\\"$x\\\"\"'$y'$z", "say \"$x\"$y$z"),
            ("A='${PATH}'", "${PATH}"),
            (r"A=\${PATH}", "${PATH}"),
            ("A=a${b", "a${b"),
            ("A=\"one $a\ntwo $b\"", "one $a\ntwo $b"),
            ("A=ä$ö", "ä$ö"),
        ] {
            let (values, problems) = of(&format!("# don't $x\nX=1  # isn't\n{text}\r\nB='$2'\n"));
            assert_eq!(values.get("A").map(String::as_str), Some(expected), "{text}: {problems:?}");
            assert_eq!((&*values["X"], &*values["B"], problems.len()), ("1", "$2", 0), "{text}");
        }
    }

    #[test]
    fn a_name_in_braces_is_replaced_and_one_that_is_not_known_is_a_problem_that_shows_no_value() {
        let path = std::env::var("PATH").expect("set");
        let (values, problems) = of("A=1\nE=\nB=\"${A}$A${PATH}\"\nC=${A}${E}2\n");
        assert_eq!((&*values["B"], &*values["C"]), (&*format!("1$A{path}"), "12"));
        assert_eq!(problems, []);
        for value in ["pa${Hunter2}9", "\"pa${Hunter2}9\"", "${Hunter2:-x}", "${ENCRYPTION_SECRET}", "${}"] {
            let (_, problems) = of(&format!("export ENCRYPTION_SECRET={value}\nHunter2=3\n"));
            let said: Vec<String> = problems.iter().map(Problem::to_string).collect();
            assert!(said.len() == 1 && said[0].starts_with("ENCRYPTION_SECRET: "), "{value}: {said:?}");
            assert!(said[0].contains("single quotes") && !said[0].contains("Hunter"), "{said:?}");
        }
    }

    #[test]
    fn what_is_no_file_of_settings_and_a_line_that_is_wrong_are_problems_that_show_no_value() {
        let (values, problems) = of("A=1\nsupersecret line\n");
        assert_eq!(values["A"], "1");
        assert_eq!(problems.len(), 1);
        assert!(!problems[0].to_string().contains("supersecret"));
        assert_eq!(of("A=1 # at the end of the file").0["A"], "1");
        let (folder, mut problems) = (tempfile::tempdir().expect("a folder"), Vec::new());
        // as a container makes it from a mount of a file that is not there
        assert!(read(folder.path(), &mut problems).is_empty());
        assert!(
            problems.len() == 1 && problems[0].to_string().contains("no file of settings"),
            "{problems:?}"
        );
        std::fs::write(folder.path().join(".env"), b"A=\xff\n").expect("written");
        assert!(read(&folder.path().join(".env"), &mut problems).is_empty());
        assert!(problems.len() == 2 && problems[1].to_string().contains("UTF-8"), "{problems:?}");
    }
}
