//! The machine: open files, the service itself, and what stands in front of it.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;

use super::ANSWER_WITHIN;
use super::report::Report;
use crate::config::{AgentKind, Config};
use crate::net::client::Client;
use crate::net::{Answer, Call, CallError, Options};
use crate::{http, ops};

/// What the kernel shows of our name.
const OWN_NAME: &str = "whatsapp-webhoo";
/// What stands in front of such a service, by the names of their processes.
const FRONTS: [&str; 9] =
    ["nginx", "caddy", "haproxy", "traefik", "envoy", "apache2", "httpd", "cloudflared", "ngrok"];
/// Those that reach out to the internet instead of listening to it.
const TUNNELS: [&str; 2] = ["cloudflared", "ngrok"];
/// The state of a socket that listens, in /proc/net/tcp.
const LISTENS: &str = "0A";

/// Looks at all of it.
pub fn look(config: &Config, report: &Report, url: Option<&str>) {
    let serving = serving(config);
    open_files(config, serving, report);
    let options = Options { pool_size: 1, connect_timeout: ANSWER_WITHIN, is_patient: false };
    let client = Client::new(options);
    service(config, &client, serving, report);
    match url {
        Some(url) => public(&client, url, report),
        None => front(report),
    }
}

/// The process that serves from DATA_DIR: the one that holds its lock.
fn serving(config: &Config) -> Option<u32> {
    let inode = config.inbox.data_dir.join("serve.lock").metadata().ok()?.ino();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        // `1: FLOCK ADVISORY WRITE <process> <device>:<device>:<inode> 0 EOF`
        let mut words = line.split_whitespace().skip(1);
        let (kind, process) = (words.next()?, words.nth(2)?);
        let is_it = kind == "FLOCK" && words.next()?.rsplit(':').next()?.parse() == Ok(inode);
        let process = process.parse().ok().filter(|_| is_it)?;
        // inodes of other volumes have the same numbers
        (name_of(process)? == OWN_NAME).then_some(process)
    })
}

fn name_of(process: u32) -> Option<String> {
    fs::read_to_string(format!("/proc/{process}/comm")).ok().map(|name| name.trim_end().to_owned())
}

fn open_files(config: &Config, serving: Option<u32>, report: &Report) {
    let edge = http::files_for(config.http.max_connections);
    let agent = if config.agent.kind == AgentKind::Echo { 0 } else { config.turn.max_turns as u64 };
    let wanted = edge + config.graph.pool_size as u64 + agent;
    let of_service = serving.and_then(limit_of);
    let (who, limit) = match of_service {
        Some(limit) => ("the running service", Ok(limit)),
        None => ("a service started from here", ops::machine::open_files_max()),
    };
    let sum = format!(
        "MAX_CONNECTIONS {}, to Graph {}, to the agent {agent}, {} in reserve",
        config.http.max_connections,
        config.graph.pool_size,
        http::files_for(0)
    );
    match limit {
        Err(e) => report.skip("files", format!("the limit of open files can't be read: {e}; ulimit -Hn")),
        Ok(limit) if limit <= http::files_for(0) => report.fail(
            "files",
            format!("{who} may open {limit}, too few to start; set LimitNOFILE=65536 in the unit (ulimit -Hn here)"),
        ),
        Ok(limit) if limit < wanted => report.warn(
            "files",
            format!("{who} may open {limit}, and {wanted} may be needed ({sum}); set LimitNOFILE={wanted} in the unit"),
        ),
        Ok(limit) => report.ok("files", format!("{who} may open {limit}; {wanted} may be needed ({sum})")),
    }
}

/// The hard limit, which the service raises its own to.
fn limit_of(process: u32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Whether it is us that answers at LISTEN.
fn service(config: &Config, client: &Client, serving: Option<u32>, report: &Report) {
    let listen = config.http.listen;
    if !listen.ip().is_loopback() {
        let text = format!(
            "LISTEN is {listen}: who reaches this machine gets plain HTTP past nginx; set 127.0.0.1:{} unless a firewall \
             keeps them out",
            listen.port()
        );
        report.warn("service", text);
    }
    if listen.port() == 0 {
        return report
            .skip("service", "LISTEN has port 0, so where it answers is in its log: `listening on`");
    }
    let running =
        serving.map_or_else(String::new, |process| format!(" (process {process} serves from DATA_DIR)"));
    match health(client, &format!("http://{}/health", near(listen))) {
        Ok(answer) if is_ours(&answer) => {
            let said = String::from_utf8_lossy(&answer.body).into_owned();
            if said.contains(r#""database":"disconnected""#) {
                let text = format!("answers at {listen}, without its businesses' store; see the lines about that{running}");
                report.warn("service", text);
            } else {
                report.ok("service", format!("answers at {listen}{running}"));
            }
        }
        Ok(answer) if answer.status == 503 => report.fail(
            "service",
            format!("at {listen} says that it can't store, so webhooks get 503; journalctl -u whatsapp-webhook{running}"),
        ),
        Ok(answer) if answer.status == 429 => {
            report.skip("service", format!("at {listen} was asked too often (RATE_LIMIT_HEALTH); try again in a minute"));
        }
        Ok(answer) => report.fail(
            "service",
            format!("another program answers at {listen} (HTTP {}); stop it (ss -ltnp), or set LISTEN", answer.status),
        ),
        Err(e) if e.timed_out => report.fail(
            "service",
            format!("{listen} gives no answer within {} s; journalctl -u whatsapp-webhook{running}", ANSWER_WITHIN.as_secs()),
        ),
        Err(_) => report.warn(
            "service",
            format!("nothing answers at {listen}{running}; systemctl start whatsapp-webhook, or is its LISTEN another?"),
        ),
    }
}

/// Where one that listens everywhere is reached from here.
fn near(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn health(client: &Client, url: &str) -> Result<Answer, CallError> {
    client.call(&Call { method: "GET", url, headers: &[], body: &[], timeout: ANSWER_WITHIN })
}

fn is_ours(answer: &Answer) -> bool {
    answer.status == 200 && String::from_utf8_lossy(&answer.body).contains(r#""service":"whatsapp-webhook""#)
}

/// From here to the public address and back, as Meta would come.
fn public(client: &Client, url: &str, report: &Report) {
    match health(client, &format!("{}/health", url.trim_end_matches('/'))) {
        Ok(answer) if is_ours(&answer) => report.ok("front", "the public address leads here, its certificate is right"),
        Ok(answer) => report.fail(
            "front",
            format!(
                "the public address answers /health with HTTP {}, not as this service; does its site forward there \
                 (systemd/nginx.conf), and is the service running?",
                answer.status
            ),
        ),
        Err(e) => report.fail(
            "front",
            format!(
                "the public address: {}; Meta needs a public certificate with its intermediates, and port 443 open",
                e.detail
            ),
        ),
    }
}

/// Who listens to the internet. Where it leads to can only be seen from there.
fn front(report: &Report) {
    let see = "`doctor --url https://YOUR-HOST` tells whether it leads here";
    let fronts = processes();
    let names = fronts.iter().copied().collect::<Vec<_>>().join(", ");
    let by = if names.is_empty() { "a process that can't be seen" } else { &names };
    let Some(ports) = listening() else {
        return report
            .skip("front", format!("which ports are listened on can't be read; ss -ltn, and {see}"));
    };
    if ports.contains(&443) {
        report.ok("front", format!("something listens on port 443 ({by}); {see}"));
    } else if TUNNELS.iter().any(|tunnel| fronts.contains(tunnel)) {
        report.ok("front", format!("a tunnel runs ({names}); {see}"));
    } else if ports.contains(&80) {
        let text = format!(
            "port 80 is listened on ({by}) and 443 is not, and Meta calls https only: certbot --nginx, unless TLS ends \
             before this machine; {see}"
        );
        report.warn("front", text);
    } else {
        let text = format!(
            "nothing listens on port 443 or 80, and Meta calls https only: nginx (systemd/nginx.conf) or a tunnel must \
             stand in front; if one does elsewhere, {see}"
        );
        report.warn("front", text);
    }
}

/// Ports of this machine that are listened on; `None` if they can't be read.
fn listening() -> Option<BTreeSet<u16>> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).ok());
    tables
        .iter()
        .any(Option::is_some)
        .then(|| tables.iter().flatten().flat_map(|table| ports(table)).collect())
}

/// `  0: 0100007F:1F90 00000000:0000 0A ..`
fn ports(table: &str) -> impl Iterator<Item = u16> + '_ {
    table.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, state) = (words.next()?, words.nth(1)?);
        let port = local.rsplit(':').next()?;
        (state == LISTENS).then(|| u16::from_str_radix(port, 16).ok()).flatten()
    })
}

fn processes() -> BTreeSet<&'static str> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let names = processes.filter_map(name_of);
    names.filter_map(|name| FRONTS.into_iter().find(|front| *front == name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_of_sockets_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue\n\
                     0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n\
                     1: 0100007F:01BB 0100007F:8A5C 01 00000000:00000000\n\
                     2: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0\n";
        assert_eq!(ports(table).collect::<Vec<_>>(), [8080, 80]);
    }

    #[test]
    fn one_that_listens_everywhere_is_asked_on_loopback() {
        assert_eq!(near("0.0.0.0:8000".parse().expect("an address")).to_string(), "127.0.0.1:8000");
        assert_eq!(near("[::]:8000".parse().expect("an address")).to_string(), "[::1]:8000");
        assert_eq!(near("10.0.0.7:8000".parse().expect("an address")).to_string(), "10.0.0.7:8000");
    }
}
