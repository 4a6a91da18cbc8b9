//! Names to addresses without blocking a worker: literals at once, names from a cache, else on the lookup
//! threads.
//!
//! An answer is kept for [`TTL`] and, while the name server fails, up to [`STALE_MAX`]. Both families, in the
//! order that the system gives (RFC 6724). A host whose addresses all refused is forgotten.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use super::trace;
use crate::blocking::Pool;
use crate::clock;
use crate::ops::metrics::Counter;

/// How long an address is believed. The system's resolver does not say the record's own TTL.
const TTL: Duration = Duration::from_secs(60);
/// How long an old address is used while lookups fail.
const STALE_MAX: Duration = Duration::from_secs(3600);
/// Names kept; above it the oldest goes.
const NAMES_MAX: usize = 256;
/// Addresses of one name that are kept and tried: what ureq has room for is 16.
const ADDRESSES_MAX: usize = 8;
const THREADS: usize = 4;
const QUEUE: usize = 1024;

pub(super) static LOOKUPS: Counter = Counter::new("net_lookups_total", "Names looked up.");
pub(super) static LOOKUPS_FAILED: Counter =
    Counter::new("net_lookups_failed_total", "Names that could not be looked up.");

static POOL: LazyLock<Pool> = LazyLock::new(|| Pool::new("lookup", THREADS, QUEUE));

/// Looks a name up; blocks. A function, so that tests have their own.
type Lookup = fn(&str) -> Vec<IpAddr>;

/// The resolver of one client.
#[derive(Debug, Clone)]
pub(super) struct Names {
    known: Arc<Mutex<HashMap<String, Known>>>,
    lookup: Lookup,
}

#[derive(Debug)]
struct Known {
    addresses: Vec<IpAddr>,
    since: Duration,
}

impl Names {
    pub(super) fn new(lookup: Lookup) -> Self {
        Self { known: Arc::default(), lookup }
    }

    /// The addresses of `host`; empty if it has none or the deadline passed.
    pub(super) fn addresses(&self, host: &str, within: Duration) -> Vec<IpAddr> {
        if let Ok(literal) = host.trim_start_matches('[').trim_end_matches(']').parse() {
            return vec![literal];
        }
        if let Some(known) = self.known(host, TTL) {
            return known;
        }
        let (names, name) = (self.clone(), host.to_owned());
        let job = move || {
            // who queued behind the same lookup finds its answer
            names.known(&name, TTL).unwrap_or_else(|| names.look_up(&name))
        };
        match POOL.run(job, within) {
            Ok(found) if !found.is_empty() => found,
            _ => {
                LOOKUPS_FAILED.inc();
                self.known(host, STALE_MAX).unwrap_or_default()
            }
        }
    }

    /// None of its addresses answered: they are looked up anew.
    pub(super) fn forget(&self, host: &str) {
        self.known.lock().remove(host);
    }

    fn known(&self, host: &str, age_max: Duration) -> Option<Vec<IpAddr>> {
        let known = self.known.lock();
        let entry = known.get(host)?;
        (clock::monotonic() - entry.since < age_max).then(|| entry.addresses.clone())
    }

    fn look_up(&self, host: &str) -> Vec<IpAddr> {
        LOOKUPS.inc();
        let mut addresses = (self.lookup)(host);
        addresses.truncate(ADDRESSES_MAX);
        if addresses.is_empty() {
            return addresses;
        }
        let mut known = self.known.lock();
        if known.len() >= NAMES_MAX && !known.contains_key(host) {
            let oldest = known.iter().min_by_key(|(_, entry)| entry.since).map(|(name, _)| name.clone());
            oldest.and_then(|name| known.remove(&name));
        }
        let entry = Known { addresses: addresses.clone(), since: clock::monotonic() };
        known.insert(host.to_owned(), entry);
        addresses
    }
}

/// getaddrinfo.
pub(super) fn system(host: &str) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for address in (host, 0).to_socket_addrs().into_iter().flatten() {
        if !addresses.contains(&address.ip()) {
            addresses.push(address.ip());
        }
    }
    addresses
}

/// The port of the URL, else its scheme's.
fn port(uri: &Uri) -> u16 {
    uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 })
}

impl Resolver for Names {
    fn resolve(
        &self,
        uri: &Uri,
        _config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let within = trace::left(*timeout.after)?;
        let addresses = self.addresses(uri.host().unwrap_or_default(), within);
        if addresses.is_empty() {
            trace::left(*timeout.after)?;
            return Err(ureq::Error::HostNotFound);
        }
        let mut resolved = self.empty();
        for address in addresses {
            resolved.push(SocketAddr::new(address, port(uri)));
        }
        Ok(resolved)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn literals_need_no_lookup() {
        let names = Names::new(|_| panic!("looked up"));
        assert_eq!(names.addresses("127.0.0.1", LONG), ["127.0.0.1".parse::<IpAddr>().expect("an address")]);
        assert_eq!(names.addresses("[::1]", LONG), ["::1".parse::<IpAddr>().expect("an address")]);
    }

    #[test]
    fn a_name_is_looked_up_once_until_it_is_forgotten() {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let names = Names::new(|_| {
            COUNT.fetch_add(1, Ordering::Relaxed);
            vec!["10.0.0.1".parse().expect("an address"), "::1".parse().expect("an address")]
        });
        for _ in 0..10 {
            assert_eq!(names.addresses("a.example", LONG).len(), 2);
        }
        assert_eq!(COUNT.load(Ordering::Relaxed), 1);
        names.forget("a.example");
        names.addresses("a.example", LONG);
        assert_eq!(COUNT.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_failing_lookup_falls_back_to_what_was_known() {
        let names = Names::new(|_| Vec::new());
        assert!(names.addresses("b.example", LONG).is_empty());
        let address: IpAddr = "10.0.0.1".parse().expect("an address");
        let since = clock::monotonic();
        names.known.lock().insert("b.example".into(), Known { addresses: vec![address], since });
        assert_eq!(names.addresses("b.example", LONG), [address]);
        assert_eq!(names.known("b.example", Duration::ZERO), None);
    }

    #[test]
    fn the_table_stays_bounded() {
        let names = Names::new(|_| vec![IpAddr::from([127, 0, 0, 1])]);
        for n in 0..NAMES_MAX + 50 {
            names.look_up(&format!("{n}.example"));
        }
        assert_eq!(names.known.lock().len(), NAMES_MAX);
        assert!(names.known(&format!("{}.example", NAMES_MAX + 49), TTL).is_some());
    }
}
