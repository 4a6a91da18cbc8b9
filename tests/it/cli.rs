//! The command line: exit codes, `--version`, and where settings come from.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{BINARY, Service, settings};

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

#[test]
fn what_is_wrong_with_the_use_ends_with_64_and_what_went_wrong_with_1() {
    let folder = tempfile::tempdir().expect("a folder");
    let secret = [("ENCRYPTION_SECRET", "s")];
    let ends = |variables: &[(&str, &str)], line: &str, expected: i32, part: &str| {
        let arguments: Vec<&str> = line.split(' ').collect();
        let (code, _, err) = run(folder.path(), variables, &arguments, "EAAG");
        assert!(code == Some(expected) && err.contains(part), "{line}: {code:?} {err}");
    };
    let whole = "business add --subdomain cafe --name Cafe --phone-number-id 1 --waba-id 2";
    ends(&[], whole, 64, "ENCRYPTION_SECRET is not set");
    ends(
        &secret,
        "business add --subdomain cafe --name Cafe --waba-id 2",
        64,
        "--phone-number-id is required",
    );
    ends(&secret, &whole.replace("id 1", "id +1"), 64, "phone-number-id \"+1\"");
    ends(&secret, "business add --subdomain cafe --keep-token", 64, "there is no business \"cafe\"");
    ends(&secret, whole, 0, "");
    ends(&secret, &whole.replace("cafe", "bar"), 1, "belongs to business \"cafe\"");
    ends(&secret, "business show bar", 1, "there is no business \"bar\"");
    for line in ["inbox replay", "inbox replay --state sent", "inbox replay 16505551234"] {
        ends(&[], line, 64, "whatsapp-webhook: ");
    }
    ends(&[], "inbox replay wamid.1", 0, "");
    ends(&[("DATA_DIR", "elsewhere")], "inbox replay wamid.1", 1, "no store in elsewhere");
    ends(&[], "sandbox --number 123", 64, "PHONE_NUMBER_ID:TOKEN");
    ends(&[], "sandbox --listen 192.0.2.1:1", 1, "--listen 192.0.2.1:1");
}

#[test]
fn the_log_is_as_loud_as_dotenv_says() {
    let says = |dotenv: &str| {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join(".env"), dotenv).expect("written");
        let mut settings = settings(folder.path(), &[("WHATSAPP_ALLOW_UNSIGNED", "true")]);
        settings.remove("RUST_LOG");
        Service::start(&settings).log().contains("ANYONE CAN POST")
    };
    assert!(says(""), "a warning");
    assert!(!says("RUST_LOG=error\n"));
}

#[test]
fn dev_tries_the_agent_of_dotenv() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join(".env"), "AGENT=parrot\n").expect("written");
    let (code, _, err) = run(folder.path(), &[], &["dev"], "hello\n");
    assert!(code == Some(64) && err.contains("AGENT: must be echo, openai or http"), "{code:?} {err}");
}
