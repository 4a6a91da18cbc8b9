//! The rules of this code base that a program can check: sizes, headers, layers, words.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;
const LINE_CHARS_MAX: usize = 125;
/// Test files hold many small cases.
const TEST_FILE_LINES_MAX: usize = 700;

/// Leaves: any module may use them, they use each other only.
const LEAVES: [&str; 13] = [
    "bell",
    "blocking",
    "clock",
    "config",
    "event",
    "failure",
    "limits",
    "ops::metrics",
    "secret",
    "stack",
    "store",
    "turnstile",
    "crate",
];
/// What each module may use besides the leaves.
const MAY_USE: [(&str, &[&str]); 12] = [
    ("net", &[]),
    ("webhook", &[]),
    ("inbox", &[]),
    ("dispatcher", &["inbox"]),
    ("directory", &["net"]),
    ("agent", &["net"]),
    ("graph", &["net"]),
    ("ops", &["inbox", "directory"]),
    ("http", &["webhook", "inbox", "ops"]),
    ("turn", &["webhook", "inbox", "dispatcher", "directory", "agent", "graph"]),
    ("sandbox", &["net"]),
    ("config", &[]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    for folder in ["src", "tests", "benches", "loadtest"] {
        collect(&root().join(folder), &mut files);
    }
    files
}

fn collect(folder: &Path, files: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && path.file_name().is_some_and(|n| n != "target") {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).expect("text");
            files.push((path.strip_prefix(root()).expect("inside").to_owned(), text));
        }
    }
}

fn report(faults: &[String]) {
    assert!(faults.is_empty(), "{} fault(s):\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn files_functions_and_lines_stay_readable() {
    let mut faults = Vec::new();
    for (path, text) in sources() {
        let name = path.display();
        let most = if path.starts_with("tests") { TEST_FILE_LINES_MAX } else { FILE_LINES_MAX };
        let lines: Vec<&str> = text.lines().collect();
        if lines.len() > most {
            faults.push(format!("{name}: {} lines, {most} allowed", lines.len()));
        }
        if !text.starts_with("//!") {
            faults.push(format!("{name}: no //! at its head"));
        }
        for (n, line) in lines.iter().enumerate() {
            // strings can't be broken well
            if line.chars().count() > LINE_CHARS_MAX && !line.contains('"') && !line.contains("http") {
                faults.push(format!("{name}:{}: {} characters", n + 1, line.chars().count()));
            }
        }
        for (start, length) in functions(&lines) {
            if length > FUNCTION_LINES_MAX {
                faults.push(format!("{name}:{}: a function of {length} lines", start + 1));
            }
        }
    }
    report(&faults);
}

/// First line and length of each function: rustfmt puts its end at its own indentation.
fn functions(lines: &[&str]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let bare = line.trim_start();
        let mut head = bare;
        for word in ["pub ", "pub(crate) ", "pub(super) ", "const ", "unsafe "] {
            head = head.strip_prefix(word).unwrap_or(head);
        }
        if !head.starts_with("fn ") {
            continue;
        }
        // a declaration without a body ends in `;` before any body begins
        let opens = lines[start..].iter().find(|l| l.ends_with('{') || l.ends_with(';') || l.ends_with('}'));
        if opens.is_some_and(|l| !l.ends_with('{')) {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - bare.len()]);
        if let Some(length) = lines[start..].iter().position(|l| *l == end) {
            found.push((start, length + 1));
        }
    }
    found
}

#[test]
fn modules_use_only_what_is_right_of_them() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_USE.into_iter().collect();
    let mut faults = Vec::new();
    for (path, text) in sources() {
        let Ok(inside) = path.strip_prefix("src") else { continue };
        let module =
            inside.iter().next().and_then(|m| m.to_str()).unwrap_or_default().trim_end_matches(".rs");
        let Some(uses) = allowed.get(module) else { continue };
        // tests inside a file may reach further
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (n, line) in code.lines().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for used in line.split("crate::").skip(1) {
                let used: String =
                    used.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect();
                let is_leaf = LEAVES.iter().any(|leaf| used.starts_with(leaf));
                let first = used.split("::").next().unwrap_or_default();
                if !(used.is_empty() || is_leaf || first == module || uses.contains(&first)) {
                    faults.push(format!("{}:{}: {module} must not use {first}", path.display(), n + 1));
                }
            }
        }
    }
    report(&faults);
}

#[test]
fn no_word_that_is_only_for_us_and_no_path_of_a_machine() {
    // put together here, so that this file does not name them
    let banned = [["TO", "DO"], ["FIX", "ME"], ["dbg", "!("], ["/work", "/"], ["/root", "/"], ["todo", "!("]];
    let mut faults = Vec::new();
    for (path, text) in sources() {
        for (n, line) in text.lines().enumerate() {
            for word in banned.map(|parts| parts.concat()) {
                if line.contains(&word) {
                    faults.push(format!("{}:{}: {word}", path.display(), n + 1));
                }
            }
        }
    }
    report(&faults);
}

#[test]
fn the_reader_of_functions_sees_them() {
    let lines = ["impl A {", "    pub fn a() {", "        b", "    }", "}", "fn c() {", "}"];
    assert_eq!(functions(&lines), [(1, 3), (5, 2)]);
}
