//! PURE. Rate limits per client address: n requests a minute, as an even flow with a burst of n (GCRA).
//!
//! One number a client: the time at which its flow is even again. The table is bounded; when it is full of clients
//! that are all under way, new ones pass (and are counted), since a flood of addresses must not lock others out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

/// What is limited apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    Health,
    Ready,
    Metrics,
    Admin,
    Unverified,
    Webhook,
}

/// Clients that are remembered.
pub const CLIENTS_MAX: usize = 65_536;
const MINUTE: Duration = Duration::from_secs(60);

/// See the module's head.
#[derive(Default)]
pub struct Limiter {
    even_at: HashMap<(Class, IpAddr), Duration>,
}

impl Limiter {
    /// Counts a request at `now`; `Err` with the time until the next one passes. `per_minute` 0: no limit.
    pub fn pass(
        &mut self,
        class: Class,
        client: IpAddr,
        per_minute: u32,
        now: Duration,
    ) -> Result<(), Duration> {
        if per_minute == 0 {
            return Ok(());
        }
        let step = MINUTE / per_minute;
        let key = (class, network(client));
        let even_at = self.even_at.get(&key).copied().unwrap_or(now).max(now);
        let next = even_at + step;
        if next > now + MINUTE {
            return Err(next - now - MINUTE);
        }
        if self.even_at.len() >= CLIENTS_MAX && !self.even_at.contains_key(&key) {
            self.even_at.retain(|_, even_at| *even_at > now);
            if self.even_at.len() >= CLIENTS_MAX {
                super::CLIENTS_FULL.inc();
                return Ok(());
            }
        }
        self.even_at.insert(key, next);
        Ok(())
    }
}

/// IPv6 clients are counted by their /64, which is what one client gets.
fn network(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(v6) => IpAddr::from((u128::from(v6) >> 64 << 64).to_be_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn a_burst_of_the_whole_minute_passes_and_then_the_flow_is_even() {
        let mut limiter = Limiter::default();
        let at = Duration::from_secs(1000);
        for _ in 0..60 {
            assert_eq!(limiter.pass(Class::Health, HOME, 60, at), Ok(()));
        }
        assert_eq!(limiter.pass(Class::Health, HOME, 60, at), Err(Duration::from_secs(1)));
        assert_eq!(limiter.pass(Class::Ready, HOME, 60, at), Ok(()), "another class");
        assert_eq!(limiter.pass(Class::Health, HOME, 60, at + Duration::from_secs(1)), Ok(()));
        assert!(limiter.pass(Class::Health, HOME, 60, at + Duration::from_secs(1)).is_err());
    }

    #[test]
    fn zero_is_no_limit_and_one_v6_network_is_one_client() {
        let mut limiter = Limiter::default();
        let at = Duration::ZERO;
        assert!((0..1000).all(|_| limiter.pass(Class::Webhook, HOME, 0, at).is_ok()));
        let one: IpAddr = "2a03:2880:10ff::1".parse().expect("address");
        let two: IpAddr = "2a03:2880:10ff::2".parse().expect("address");
        assert!(limiter.pass(Class::Admin, one, 1, at).is_ok());
        assert!(limiter.pass(Class::Admin, two, 1, at).is_err());
    }

    #[test]
    fn a_flood_of_addresses_neither_grows_the_table_nor_locks_out() {
        let mut limiter = Limiter::default();
        for n in 0..CLIENTS_MAX as u32 + 10 {
            let client = IpAddr::from(n.to_be_bytes());
            assert!(limiter.pass(Class::Admin, client, 10, Duration::ZERO).is_ok());
        }
        assert!(limiter.even_at.len() <= CLIENTS_MAX);
    }

    proptest! {
        #[test]
        fn never_more_than_twice_the_rate_in_any_minute(steps in prop::collection::vec(0_u64..3000, 1..400), rate in 1_u32..100) {
            let mut limiter = Limiter::default();
            let mut now = Duration::from_secs(60);
            let mut passed: Vec<Duration> = Vec::new();
            for step in steps {
                now += Duration::from_millis(step);
                if limiter.pass(Class::Health, HOME, rate, now).is_ok() {
                    passed.push(now);
                }
                let recent = passed.iter().filter(|at| **at + MINUTE > now).count();
                prop_assert!(recent <= 2 * rate as usize);
            }
        }
    }
}
