//! The shipped unit and its settings, against the tool that reads units and against the binary that reads settings.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

const BINARY: &str = env!("CARGO_BIN_EXE_whatsapp-webhook");
const ANALYZE: &str = "/usr/bin/systemd-analyze";
const UNIT: &str = include_str!("../../systemd/whatsapp-webhook.service");
const SETTINGS: &str = include_str!("../../systemd/environment.example");
/// Where the names of all variables stand.
const READ: &str =
    concat!(include_str!("../../src/config/read.rs"), include_str!("../../src/config/mongodb.rs"));
/// Exposure that `systemd-analyze security` may find, of 10, in tenths: what is left is the network.
const EXPOSURE_MAX: u32 = 15;

/// The unit as a file, with the binary where it is now.
fn unit(folder: &Path) -> std::path::PathBuf {
    assert!(
        Path::new(ANALYZE).exists(),
        "no {ANALYZE}: install the package `systemd` (apt-get install systemd)"
    );
    assert_eq!(UNIT.matches("ExecStart=/usr/bin/whatsapp-webhook serve").count(), 1);
    let file = folder.join("whatsapp-webhook.service");
    std::fs::write(
        &file,
        UNIT.replace("ExecStart=/usr/bin/whatsapp-webhook", &format!("ExecStart={BINARY}")),
    )
    .expect("written");
    file
}

/// Lines `name=value` of the unit.
fn values(name: &str) -> Vec<&'static str> {
    UNIT.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect()
}

/// The variables of the example that are commented out, with their values.
fn settings() -> Vec<(&'static str, &'static str)> {
    let named = |line: &'static str| {
        let (name, value) = line.strip_prefix('#')?.split_once('=')?;
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        is_name.then(|| (name, value.trim_matches('"')))
    };
    SETTINGS.lines().filter_map(named).collect()
}

#[test]
fn the_unit_is_valid_and_well_caged() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = unit(folder.path());
    let out = Command::new(ANALYZE).arg("verify").arg(&file).output().expect("runs");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    // it says "ignoring" and exits 0 for what it does not understand
    assert!(out.status.success() && !said.contains("whatsapp-webhook"), "{said}");

    let out = Command::new(ANALYZE).args(["security", "--offline=true"]).arg(&file).output().expect("runs");
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let score =
        said.lines().rev().find_map(|line| line.split_once(".service: ")?.1.split_whitespace().next());
    let tenths: u32 = score.expect("a score").replace('.', "").parse().expect("a number");
    assert!(tenths <= EXPOSURE_MAX, "{said}");
}

#[test]
fn the_unit_stops_later_than_the_drain_and_hands_every_secret_over() {
    let seconds = |text: &str| text.trim_end_matches('s').parse::<u64>().expect("seconds");
    let drain = settings().into_iter().find(|(name, _)| *name == "DRAIN_TIMEOUT").expect("there").1;
    assert!(seconds(values("TimeoutStopSec")[0]) > seconds(drain) + 10);

    let ids =
        |name: &str| -> BTreeSet<&str> { values(name).iter().filter_map(|v| v.split(':').next()).collect() };
    let loaded = ids("LoadCredential");
    assert_eq!(loaded, ids("SetCredential"), "a missing file must count as not set");
    let read: BTreeSet<&str> = variables("secret").chain(variables("list")).collect();
    assert!(!read.is_empty());
    for secret in read.iter().chain(&["WHATSAPP_APP_SECRET"]) {
        assert!(loaded.contains(secret), "{secret} in LoadCredential");
        assert!(
            !settings().iter().any(|(name, _)| name == secret),
            "{secret} belongs into a file of its own"
        );
        assert!(SETTINGS.contains(secret), "{secret} is not explained");
    }
}

/// The names that the configuration reads with `vars.<method>("NAME"..)`.
fn variables(method: &str) -> impl Iterator<Item = &'static str> {
    let call = format!("{method}(");
    let names = READ.split(&call).skip(1).filter_map(|rest| {
        let rest = rest.strip_prefix("vars, ").unwrap_or(rest);
        rest.strip_prefix('"')?.split('"').next()
    });
    names.collect::<Vec<_>>().into_iter()
}

#[test]
fn the_example_names_every_variable_and_shows_right_values() {
    let named: BTreeSet<&str> = settings().into_iter().map(|(name, _)| name).collect();
    for method in ["text", "flag", "number", "duration", "parsed", "rate"] {
        for name in variables(method).filter(|name| *name != "STATE_DIRECTORY") {
            assert!(
                named.contains(name) || values("LoadCredential").iter().any(|v| v.starts_with(name)),
                "{name}"
            );
        }
    }
    assert!(named.contains("RUST_LOG"));

    // with every line uncommented (but for the folder), the binary finds nothing wrong
    let folder = tempfile::tempdir().expect("a folder");
    let mut check = Command::new(BINARY);
    check.arg("check").env_clear().current_dir(folder.path());
    for (name, value) in settings() {
        check.env(name, if name == "DATA_DIR" { "data" } else { value });
    }
    for secret in values("LoadCredential").iter().filter_map(|v| v.split(':').next()) {
        let value = if secret == "MONGODB_URI" { "mongodb://user:secret@127.0.0.1" } else { "secret" };
        check.env(secret, value);
    }
    let out = check.output().expect("runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn credentials_that_are_empty_lines_count_as_not_set() {
    let folder = tempfile::tempdir().expect("a folder");
    for secret in values("SetCredential").iter().filter_map(|v| v.strip_suffix(":\\n")) {
        std::fs::write(folder.path().join(secret), "\n").expect("written");
    }
    let check = || {
        let mut check = Command::new(BINARY);
        check.arg("check").env_clear().current_dir(folder.path()).env("CREDENTIALS_DIRECTORY", folder.path());
        check.output().expect("runs")
    };
    let out = check();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(64), "{said}");
    for name in ["WHATSAPP_APP_SECRET", "WHATSAPP_VERIFY_TOKEN", "ENCRYPTION_SECRET"] {
        assert!(said.contains(&format!("{name}: is not set")), "{said}");
    }
    for name in ["WHATSAPP_APP_SECRET", "WHATSAPP_VERIFY_TOKEN", "ENCRYPTION_SECRET"] {
        std::fs::write(folder.path().join(name), "secret\n").expect("written");
    }
    assert_eq!(check().status.code(), Some(0));
}
