//! From variables to [`Config`]: names, defaults, bounds. Every mistake is collected.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::mongodb::mongodb;
use super::vars::{Problem, Vars};
use super::{Agent, AgentKind, App, Config, Directory, Fallback, Graph, Http, Inbox, Rates, Turn, Webhook};
use crate::secret::Secret;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// Everything that `serve` needs, or everything that is wrong.
pub fn config(mut vars: Vars) -> Result<Config, Vec<Problem>> {
    let config = Config {
        workers: vars.number("WORKERS", 0, 0, 1024) as usize,
        http: http(&mut vars),
        webhook: webhook(&mut vars),
        inbox: inbox(&mut vars),
        directory: directory(&mut vars),
        agent: agent(&mut vars),
        graph: graph(&mut vars),
        turn: turn(&mut vars),
    };
    if config.directory.encryption_secret.is_none() && vars.text("ENCRYPTION_SECRET").is_none() {
        vars.problem(
            "ENCRYPTION_SECRET",
            "is not set; it is the secret that the stored tokens are encrypted with",
        );
    }
    let problems = vars.into_problems();
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

/// What the `business` commands need.
pub fn directory_only(mut vars: Vars) -> Result<Directory, Vec<Problem>> {
    let directory = directory(&mut vars);
    let problems = vars.into_problems();
    if problems.is_empty() { Ok(directory) } else { Err(problems) }
}

/// What the `inbox` commands need.
pub fn data_dir_only(mut vars: Vars) -> Result<PathBuf, Vec<Problem>> {
    let folder = data_dir(&mut vars);
    let problems = vars.into_problems();
    if problems.is_empty() { Ok(folder) } else { Err(problems) }
}

/// What `sandbox` signs with: the secret of the first app, if one is set.
pub fn app_secret_only(mut vars: Vars) -> Result<Option<Secret>, Vec<Problem>> {
    let first = apps(&mut vars).into_iter().next().map(|app| app.secret);
    let problems = vars.into_problems();
    if problems.is_empty() { Ok(first) } else { Err(problems) }
}

fn http(vars: &mut Vars) -> Http {
    let default = SocketAddr::from(([127, 0, 0, 1], 8000));
    let rate = |vars: &mut Vars, name: &str, default| vars.number(name, default, 0, 1_000_000) as u32;
    Http {
        listen: vars.parsed("LISTEN", default, "an address and a port, like 127.0.0.1:8000"),
        max_connections: vars.number("MAX_CONNECTIONS", 10_000, 1, 1_000_000) as usize,
        header_timeout: vars.duration("HEADER_TIMEOUT", 10 * SECOND, SECOND / 10, 10 * MINUTE),
        body_timeout: vars.duration("BODY_TIMEOUT", 30 * SECOND, SECOND / 10, 10 * MINUTE),
        idle_timeout: vars.duration("IDLE_TIMEOUT", 75 * SECOND, SECOND / 10, HOUR),
        admin_token: vars.secret("ADMIN_TOKEN"),
        trusted_proxies: trusted_proxies(vars),
        rates: Rates {
            health: rate(vars, "RATE_LIMIT_HEALTH", 100),
            ready: rate(vars, "RATE_LIMIT_READY", 100),
            metrics: rate(vars, "RATE_LIMIT_METRICS", 100),
            admin: rate(vars, "RATE_LIMIT_ADMIN", 10),
            unverified: rate(vars, "RATE_LIMIT_UNVERIFIED", 60),
            webhook: rate(vars, "RATE_LIMIT_WEBHOOK", 0),
        },
    }
}

fn trusted_proxies(vars: &mut Vars) -> Vec<ipnet::IpNet> {
    let text = vars.text("TRUSTED_PROXIES").unwrap_or_else(|| "127.0.0.0/8,::1/128".to_owned());
    let mut nets = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let net = part.parse().or_else(|_| part.parse::<std::net::IpAddr>().map(ipnet::IpNet::from));
        match net {
            Ok(net) => nets.push(net),
            Err(_) => {
                vars.problem(
                    "TRUSTED_PROXIES",
                    "must be addresses or networks, like 10.0.0.7,192.168.0.0/16",
                );
                break;
            }
        }
    }
    nets
}

fn webhook(vars: &mut Vars) -> Webhook {
    let allow_unsigned = vars.flag("WHATSAPP_ALLOW_UNSIGNED", false);
    let verify_tokens = list(vars, "WHATSAPP_VERIFY_TOKEN");
    if verify_tokens.is_empty() && vars.text("WHATSAPP_VERIFY_TOKEN").is_none() {
        let what = "is not set; choose a long random word and type the same into the app's webhook settings";
        vars.problem("WHATSAPP_VERIFY_TOKEN", what);
    }
    let apps = apps(vars);
    if apps.is_empty() && vars.text("WHATSAPP_APP_SECRET").is_none() && !allow_unsigned {
        let what = "is not set; it is the Meta app's App Secret (App settings, Basic), which signs every webhook; \
                    without it anyone could post, so serving needs WHATSAPP_ALLOW_UNSIGNED=true then";
        vars.problem("WHATSAPP_APP_SECRET", what);
    }
    Webhook { verify_tokens, apps, allow_unsigned }
}

/// Comma-separated secrets.
fn list(vars: &mut Vars, name: &str) -> Vec<Secret> {
    let Some(all) = vars.secret(name) else { return Vec::new() };
    let parts: Vec<&str> = all.reveal().split(',').map(str::trim).collect();
    if parts.iter().any(|part| part.is_empty()) {
        vars.problem(name, "has an empty entry between its commas");
    }
    parts.into_iter().filter(|part| !part.is_empty()).map(Secret::new).collect()
}

fn apps(vars: &mut Vars) -> Vec<App> {
    let name = "WHATSAPP_APP_SECRET";
    let mut apps: Vec<App> = Vec::new();
    for entry in list(vars, name) {
        let (app, secret) = match entry.reveal().split_once('=') {
            Some((app, secret)) => (Some(app.trim().to_owned()), secret.trim()),
            None => (None, entry.reveal()),
        };
        let nameless = app.as_deref().is_some_and(str::is_empty);
        if secret.is_empty() || nameless {
            vars.problem(name, "has an entry that is neither `secret` nor `name=secret`");
            continue;
        }
        if app.is_some() && apps.iter().any(|known| known.name == app) {
            vars.problem(name, "names one app twice");
            continue;
        }
        apps.push(App { name: app, secret: Secret::new(secret) });
    }
    apps
}

fn data_dir(vars: &mut Vars) -> PathBuf {
    let state = vars.text("STATE_DIRECTORY").map(|all| all.split(':').next().unwrap_or_default().to_owned());
    let folder = vars.text("DATA_DIR").or(state).map_or_else(|| PathBuf::from("data"), PathBuf::from);
    if folder.exists() && !folder.is_dir() {
        vars.problem("DATA_DIR", "is not a folder");
    }
    folder
}

fn inbox(vars: &mut Vars) -> Inbox {
    Inbox {
        data_dir: data_dir(vars),
        retention: vars.duration("INBOX_RETENTION", 8 * DAY, MINUTE, 3650 * DAY),
        commit_pace: vars.duration("COMMIT_PACE", SECOND / 1000, Duration::ZERO, SECOND / 10),
        checkpoint_bytes: vars.number("CHECKPOINT_MIB", 4, 1, 1024) << 20,
    }
}

fn directory(vars: &mut Vars) -> Directory {
    let max = vars.number("MONGODB_MAX_POOL_SIZE", 100, 1, 10_000) as usize;
    let min = vars.number("MONGODB_MIN_POOL_SIZE", 10.min(max as u64), 0, 10_000) as usize;
    if min > max {
        vars.problem("MONGODB_MIN_POOL_SIZE", "is above MONGODB_MAX_POOL_SIZE");
    }
    Directory {
        data_dir: data_dir(vars),
        encryption_secret: vars.secret("ENCRYPTION_SECRET"),
        encryption_secret_old: vars.secret("ENCRYPTION_SECRET_OLD"),
        cache_ttl: vars.duration("BUSINESS_CACHE_TTL", 300 * SECOND, SECOND, DAY),
        cache_size: vars.number("BUSINESS_CACHE_SIZE", 1000, 1, 1_000_000) as usize,
        warmup: vars.flag("WARMUP_CACHE", true),
        fallback: fallback(vars),
        pool: (max, min),
        mongodb: mongodb(vars, (max, min)),
    }
}

fn fallback(vars: &mut Vars) -> Option<Fallback> {
    let number = vars.text("WHATSAPP_PHONE_NUMBER_ID");
    let token = vars.secret("WHATSAPP_TOKEN");
    match (number, token) {
        (Some(phone_number_id), Some(token)) => Some(Fallback { phone_number_id, token }),
        (Some(_), None) => {
            vars.problem(
                "WHATSAPP_TOKEN",
                "is not set, but WHATSAPP_PHONE_NUMBER_ID is; set both or neither",
            );
            None
        }
        (None, Some(_)) => {
            vars.problem(
                "WHATSAPP_PHONE_NUMBER_ID",
                "is not set, but WHATSAPP_TOKEN is; set both or neither",
            );
            None
        }
        (None, None) => None,
    }
}

fn agent(vars: &mut Vars) -> Agent {
    let kind = match vars.text("AGENT").as_deref() {
        None | Some("echo") => AgentKind::Echo,
        Some("openai") => AgentKind::OpenAi,
        Some("http") => AgentKind::Http,
        Some(_) => {
            vars.problem("AGENT", "must be echo, openai or http");
            AgentKind::Echo
        }
    };
    let url = vars.text("AGENT_URL").map(|url| url.trim_end_matches('/').to_owned());
    let model = vars.text("AGENT_MODEL");
    if kind != AgentKind::Echo {
        match &url {
            None => vars.problem("AGENT_URL", "is not set; this agent is called there"),
            Some(url) if !is_http(url) || !is_url(url) => vars.problem(
                "AGENT_URL",
                "must begin with https:// or http://, then a host and, if any, a port of 1 to 65535",
            ),
            Some(_) => {}
        }
    }
    if kind == AgentKind::OpenAi && model.is_none() {
        vars.problem("AGENT_MODEL", "is not set; AGENT=openai needs the model's name");
    }
    Agent {
        kind,
        url,
        api_key: vars.secret("AGENT_API_KEY"),
        model,
        prompt: vars.text("AGENT_PROMPT"),
        timeout: vars.duration("AGENT_TIMEOUT", MINUTE, SECOND / 10, HOUR),
        attempts: vars.number("AGENT_ATTEMPTS", 4, 1, 100) as u32,
        fallback_text: vars.text("AGENT_FALLBACK_TEXT"),
        history: vars.number("AGENT_HISTORY", 20, 0, 200) as usize,
        history_max_age: vars.duration("AGENT_HISTORY_MAX_AGE", 30 * DAY, MINUTE, 3650 * DAY),
    }
}

fn graph(vars: &mut Vars) -> Graph {
    let default = "https://graph.facebook.com";
    let url =
        vars.text("GRAPH_API_URL").unwrap_or_else(|| default.to_owned()).trim_end_matches('/').to_owned();
    if !is_url(&url) {
        vars.problem("GRAPH_API_URL", "is not a URL: https://, a host, maybe a port (1 to 65535) and a path");
    } else if !url.starts_with("https://") && !is_loopback_http(&url) {
        vars.problem(
            "GRAPH_API_URL",
            "must begin with https:// (http:// only for a loopback address): tokens go there",
        );
    }
    let version = vars.text("GRAPH_API_VERSION").unwrap_or_else(|| "v25.0".to_owned());
    let digits = version.strip_prefix('v').unwrap_or_default();
    if digits.is_empty() || !digits.chars().all(|c| c.is_ascii_digit() || c == '.') {
        vars.problem("GRAPH_API_VERSION", "must look like v25.0");
    }
    Graph {
        url,
        version,
        timeout: vars.duration("GRAPH_TIMEOUT", 30 * SECOND, SECOND / 10, 10 * MINUTE),
        pool_size: vars.number("GRAPH_POOL_SIZE", 200, 1, 10_000) as usize,
        rate_per_number: vars.number("GRAPH_RATE", 80, 1, 100_000) as u32,
    }
}

fn turn(vars: &mut Vars) -> Turn {
    // turns that wait for an agent cost memory only; the echo agent makes nobody wait, and more turns than twice the
    // connections to Graph wait for one of those
    let is_echo = vars.text("AGENT").is_none_or(|agent| agent == "echo");
    let max_turns = if is_echo { 400 } else { 12_000 };
    Turn {
        reply_max_age: vars.duration("REPLY_MAX_AGE", 23 * HOUR, SECOND, 30 * DAY),
        drain_timeout: vars.duration("DRAIN_TIMEOUT", 30 * SECOND, SECOND / 10, HOUR),
        send_settle: vars.duration("SEND_SETTLE", MINUTE, SECOND / 10, DAY),
        max_turns: vars.number("MAX_TURNS", max_turns, 1, 1_000_000) as usize,
    }
}

/// With a host, and a port that is one if any is written: 99999 would be taken for the scheme's.
fn is_url(url: &str) -> bool {
    let Ok(uri) = url.parse::<ureq::http::Uri>() else { return false };
    let Some(host) = uri.host().filter(|host| !host.is_empty()) else { return false };
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let port = authority.rsplit('@').next().and_then(|rest| rest.strip_prefix(host)).unwrap_or_default();
    port.is_empty() || port.strip_prefix(':').and_then(|port| port.parse::<u16>().ok()).is_some_and(|n| n > 0)
}

fn is_http(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("http://")
}

fn is_loopback_http(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else { return false };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.contains('@') {
        return false;
    }
    let host = host
        .rsplit_once(':')
        .filter(|(_, port)| port.chars().all(|c| c.is_ascii_digit()))
        .map_or(host, |h| h.0);
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|a| a.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn vars(pairs: &[(&str, &str)]) -> Vars {
        Vars::from_map(
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<HashMap<_, _>>(),
        )
    }

    fn names(problems: &[Problem]) -> Vec<&str> {
        problems.iter().map(|p| p.name.as_str()).collect()
    }

    #[test]
    fn an_empty_environment_names_every_missing_setting() {
        let problems = config(vars(&[])).expect_err("nothing is set");
        assert_eq!(names(&problems), ["WHATSAPP_VERIFY_TOKEN", "WHATSAPP_APP_SECRET", "ENCRYPTION_SECRET"]);
    }

    #[test]
    fn all_mistakes_come_at_once_and_no_value_is_shown() {
        let problems = config(vars(&[
            ("WHATSAPP_VERIFY_TOKEN", "hunter2"),
            ("WHATSAPP_APP_SECRET", "a=hunter2,a=hunter2,=hunter2"),
            ("ENCRYPTION_SECRET", "hunter2"),
            ("LISTEN", "hunter2"),
            ("MAX_CONNECTIONS", "hunter2"),
            ("GRAPH_API_URL", "http://hunter2.example.com"),
            ("GRAPH_API_VERSION", "hunter2"),
            ("AGENT", "hunter2"),
            ("REPLY_MAX_AGE", "hunter2"),
            ("TRUSTED_PROXIES", "hunter2"),
            ("WHATSAPP_TOKEN", "hunter2"),
            ("MONGODB_URI", "mysql://hunter2"),
            ("ADMIN_TOKEN", "hunter2\nx"),
        ]))
        .expect_err("wrong");
        for name in
            ["LISTEN", "MAX_CONNECTIONS", "GRAPH_API_URL", "GRAPH_API_VERSION", "AGENT", "REPLY_MAX_AGE"]
        {
            assert!(names(&problems).contains(&name), "{name}");
        }
        assert_eq!(names(&problems).iter().filter(|n| **n == "WHATSAPP_APP_SECRET").count(), 2);
        for name in ["TRUSTED_PROXIES", "WHATSAPP_PHONE_NUMBER_ID", "MONGODB_URI", "ADMIN_TOKEN"] {
            assert!(names(&problems).contains(&name), "{name}");
        }
        let all: String = problems.iter().map(|p| format!("{p}\n")).collect();
        assert!(!all.contains("hunter2"), "{all}");
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let config = config(vars(&[
            ("WHATSAPP_VERIFY_TOKEN", "a, b"),
            ("WHATSAPP_APP_SECRET", "one=x,two=y"),
            ("ENCRYPTION_SECRET", "s"),
        ]))
        .expect("right");
        assert_eq!(config.http.listen.to_string(), "127.0.0.1:8000");
        assert_eq!(config.webhook.verify_tokens.len(), 2);
        assert_eq!(config.webhook.apps[1].name.as_deref(), Some("two"));
        assert_eq!(config.graph.url, "https://graph.facebook.com");
        assert_eq!(config.turn.reply_max_age, Duration::from_secs(23 * 3600));
        assert_eq!((config.directory.cache_ttl, config.directory.cache_size), (300 * SECOND, 1000));
    }

    #[test]
    fn a_url_has_a_host_and_a_port_that_is_one() {
        for good in ["https://a", "http://a:80/x", "http://u:p@a:65535", "http://[::1]:1/x", "https://[::1]"]
        {
            assert!(is_url(good), "{good}");
        }
        for bad in
            ["", "http://", "http://a:99999", "http://a:0", "http://a:", "http://u@a:x", "http://[::1]:"]
        {
            assert!(!is_url(bad), "{bad}");
        }
    }

    #[test]
    fn plain_http_to_graph_only_on_loopback() {
        for good in ["http://127.0.0.1:1", "http://localhost", "http://[::1]:80/x"] {
            assert!(is_loopback_http(good), "{good}");
        }
        for bad in
            ["http://10.0.0.1", "http://127.0.0.1@evil.com", "http://localhost.evil.com", "ftp://localhost"]
        {
            assert!(!is_loopback_http(bad), "{bad}");
        }
    }
}
