//! The command line: exit codes, `--version`, and where settings come from.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::BINARY;

/// Exit code, standard output, standard error.
type Ran = (Option<i32>, String, String);

/// Runs the binary in a folder with these variables and nothing else of the environment.
fn run(folder: &Path, variables: &[(&str, &str)], arguments: &[&str], input: &str) -> Ran {
    let mut child = Command::new(BINARY)
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    // who is wrongly used may end without reading
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let out = child.wait_with_output().expect("waited");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (out.status.code(), text(out.stdout), text(out.stderr))
}

#[test]
fn every_command_has_a_version_and_a_help() {
    let folder = tempfile::tempdir().expect("a folder");
    let commands = "serve|dev|sandbox|check|business|business add|business list|business show|business remove|\
                    business import|business export|key|key rotate|indexes|inbox|inbox status|inbox list|\
                    inbox inspect|inbox replay";
    for command in commands.split('|').chain([""]) {
        for (flag, part) in [("--version", env!("CARGO_PKG_VERSION")), ("--help", "Usage: ")] {
            let arguments: Vec<&str> = command.split_whitespace().chain([flag]).collect();
            let (code, out, err) = run(folder.path(), &[], &arguments, "");
            assert!(code == Some(0) && out.contains(part), "{arguments:?}: {code:?} {out}{err}");
        }
    }
}
