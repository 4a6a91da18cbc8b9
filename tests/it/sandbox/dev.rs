//! The `dev` command as somebody new would try it.

use super::*;

struct Dev {
    code: Option<i32>,
    out: String,
    err: String,
}

fn dev(input: &str, settings: &[(&str, &str)]) -> Dev {
    let folder = tempfile::tempdir().expect("a folder");
    let mut child = Command::new(BINARY)
        .arg("dev")
        .env_clear()
        .env("TMPDIR", folder.path())
        .envs(settings.iter().copied())
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("waited");
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("readable").collect();
    assert!(left.is_empty(), "dev leaves nothing behind: {left:?}");
    Dev {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn dev_answers_each_line_of_a_pipe_and_exits_0() {
    let dev = dev("hello\n\n  \nhow are you?\nlast line without an end", &[]);
    assert_eq!(dev.code, Some(0), "{}", dev.err);
    let said: Vec<&str> =
        dev.out.lines().filter(|l| l.contains("hello") || l.contains("how") || l.contains("last")).collect();
    let expected = [
        "hello",
        "hello",
        "how are you?",
        "how are you?",
        "last line without an end",
        "last line without an end",
    ];
    assert_eq!(said.len(), 6, "{}", dev.out);
    assert!(said.iter().zip(expected).all(|(line, text)| line.ends_with(text)), "{}", dev.out);
}

#[test]
fn dev_with_no_input_ends_at_once() {
    let dev = dev("", &[]);
    assert_eq!(dev.code, Some(0), "{}", dev.err);
}

#[test]
fn dev_lets_one_try_an_agent_of_ones_own() {
    crate::coroutines();
    let agent = OpenAi::start(Some(Secret::new("key"))).expect("starts");
    let url = agent.url();
    let settings =
        [("AGENT", "openai"), ("AGENT_URL", url.as_str()), ("AGENT_API_KEY", "key"), ("AGENT_MODEL", "m")];
    let dev = dev("ping\n", &settings);
    assert_eq!(dev.code, Some(0), "{}", dev.err);
    assert!(dev.out.contains("You said: ping"), "{}", dev.out);
}

#[test]
fn dev_says_why_there_is_no_reply() {
    let agent = hook(|_| 400);
    let url = agent.url.clone();
    let dev = dev("ping\n", &[("AGENT", "http"), ("AGENT_URL", url.as_str())]);
    assert_ne!(dev.code, Some(0));
    assert!(dev.out.contains("no reply") && dev.err.contains("400"), "{}\n{}", dev.out, dev.err);
}

#[test]
fn dev_stopped_by_a_signal_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut child = Command::new(BINARY)
        .arg("dev")
        .env_clear()
        .env("TMPDIR", folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map(Running)
        .expect("starts");
    let mut input = child.0.stdin.take().expect("piped");
    input.write_all(b"hello\n").expect("written");
    let mut lines = BufReader::new(child.0.stdout.take().expect("piped")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with("business: ")));
    let pid = child.0.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().expect("runs").success());
    child.0.wait().expect("waited");
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("readable").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn dev_takes_no_reply_for_an_answer_and_only_what_failed_for_a_failure() {
    let agent = hook(|nth| if nth == 2 { 400 } else { 204 });
    let settings = [("AGENT", "http"), ("AGENT_URL", agent.url.as_str())];
    let first = dev("ping\n", &settings);
    assert_eq!(first.code, Some(0), "{}\n{}", first.out, first.err);
    assert!(first.out.contains("(no reply"), "{}", first.out);
    let both = dev("fails\nis left unanswered\n", &settings);
    assert_eq!(both.code, Some(1), "{}", both.out);
    assert!(both.err.contains("1 message(s) got no reply"), "{}", both.err);
}
