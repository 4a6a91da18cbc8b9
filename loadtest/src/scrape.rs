//! What the server tells of itself at `/metrics/prometheus`.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use whatsapp_webhook::ops::metrics::PREFIX;

/// The longest that the server may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Samples by name and labels, without the prefix.
#[derive(Clone, Debug, Default)]
pub struct Metrics(HashMap<String, f64>);

impl Metrics {
    /// Asks. Blocks its thread.
    ///
    /// # Errors
    /// The server does not answer, or not with metrics.
    pub fn fetch(server: SocketAddr) -> io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(
            b"GET /metrics/prometheus HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/plain\r\nConnection: close\r\n\r\n",
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if answer.starts_with("HTTP/1.1 200") {
            Ok(Self::parse(&answer))
        } else {
            Err(io::Error::other("the server did not answer with its metrics"))
        }
    }

    fn parse(text: &str) -> Self {
        let sample = |line: &str| {
            let (name, value) = line.strip_prefix(PREFIX)?.rsplit_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        };
        Self(text.lines().filter_map(sample).collect())
    }

    /// A counter or gauge; 0 where there is none.
    pub fn value(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(0.0)
    }

    /// Whether there is such a counter or gauge.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// All of a family, whatever its labels.
    pub fn sum(&self, family: &str) -> f64 {
        let of = |name: &&String| name.strip_prefix(family).is_some_and(|rest| rest.starts_with('{'));
        self.0.keys().filter(of).map(|name| self.0[name]).sum()
    }

    /// The bound in seconds of the bucket that holds a quantile of a histogram's observations since `before`.
    pub fn quantile_since(&self, before: &Self, histogram: &str, quantile: f64) -> Option<f64> {
        let prefix = format!("{histogram}_bucket{{le=\"");
        let mut buckets: Vec<(f64, f64)> = self
            .0
            .iter()
            .filter_map(|(name, count)| {
                let bound = name.strip_prefix(&prefix)?.strip_suffix("\"}")?;
                let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
                Some((bound, count - before.value(name)))
            })
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let all = buckets.last()?.1;
        if all <= 0.0 {
            return None;
        }
        buckets.iter().find(|(_, count)| *count >= all * quantile).map(|(bound, _)| *bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_that_of_the_observations_since() {
        let text = |a, b, c| {
            format!(
                "# HELP x\n{PREFIX}c_seconds_bucket{{le=\"0.001\"}} {a}\n{PREFIX}c_seconds_bucket{{le=\"0.01\"}} {b}\n\
                 {PREFIX}c_seconds_bucket{{le=\"+Inf\"}} {c}\n{PREFIX}n_total 7\n{PREFIX}k_total{{kind=\"a\"}} 1\n\
                 {PREFIX}k_total{{kind=\"b\"}} 2\n"
            )
        };
        let (before, after) = (Metrics::parse(&text(90, 90, 90)), Metrics::parse(&text(140, 188, 190)));
        assert_eq!(after.quantile_since(&before, "c_seconds", 0.5), Some(0.001));
        assert_eq!(after.quantile_since(&before, "c_seconds", 0.9), Some(0.01));
        assert_eq!(after.quantile_since(&before, "c_seconds", 0.99), Some(f64::INFINITY));
        assert_eq!(before.quantile_since(&before, "c_seconds", 0.5), None);
        assert_eq!((after.value("n_total"), after.sum("k_total"), after.value("x")), (7.0, 3.0, 0.0));
    }
}
