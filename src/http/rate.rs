//! PURE: how often one address may ask. Time is an argument, memory is fixed.
//!
//! One word a client (the generic cell rate algorithm): the time at which its bucket will be full again.
//! `limit` requests may come at once, after that one every `60 s / limit`. The table is a set of small rows:
//! a new client takes the place in its row that is full again, or else that of the client with the least
//! debt. So a flood of addresses can make the table forget, never grow, and which clients share a row depends
//! on a seed.

use std::net::IpAddr;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What is limited apart from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// GET /health.
    Health = 1,
    /// GET /ready.
    Ready = 2,
    /// GET /metrics.
    Metrics = 3,
    /// POST /admin.
    Admin = 4,
    /// POSTs without a right signature, and handshakes.
    Unverified = 5,
    /// POSTs with a right signature.
    Webhook = 6,
}

/// The window, in microseconds: limits are per minute.
const WINDOW_US: u64 = 60_000_000;
/// Rows of the table; a power of two.
const ROWS: usize = 4096;
/// Clients in a row.
const WAYS: usize = 4;

/// A client is one IPv4 address or one IPv6 /64, which is what one customer of a provider gets.
fn client(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => (u128::from(v6) & !u128::from(u64::MAX)) | (1 << 63),
    }
}

#[derive(Clone, Copy, Default)]
struct Place {
    /// Hash of class and client; 0 is nobody.
    who: u64,
    /// When the bucket is full again, in microseconds.
    full_at: u64,
}

/// Who asked how often.
pub struct Table {
    rows: Box<[[Place; WAYS]]>,
    seed: u64,
}

impl Table {
    /// `seed` should be random: it keeps an attacker from choosing who shares a row.
    pub fn new(seed: u64) -> Self {
        Self { rows: vec![[Place::default(); WAYS]; ROWS].into_boxed_slice(), seed }
    }

    /// One request of `class` from `address` at `now_us`. Err: not now, and after how many microseconds it
    /// may be. A `limit` of 0 is none.
    pub fn take(&mut self, class: Class, address: IpAddr, limit: u32, now_us: u64) -> Result<(), u64> {
        if limit == 0 {
            return Ok(());
        }
        let who = self.who(class, address);
        let step = (WINDOW_US / u64::from(limit)).max(1);
        let place = self.place(who, now_us);
        let full_at = if place.who == who { place.full_at.max(now_us) } else { now_us };
        let wait = wait_us(full_at, step, now_us);
        if wait > 0 {
            return Err(wait);
        }
        *place = Place { who, full_at: full_at + step };
        Ok(())
    }

    /// Whether [`Table::take`] would refuse; takes nothing.
    pub fn is_over(&self, class: Class, address: IpAddr, limit: u32, now_us: u64) -> bool {
        let who = self.who(class, address);
        let row = &self.rows[who as usize & (ROWS - 1)];
        let step = WINDOW_US / u64::from(limit.max(1));
        limit > 0 && row.iter().any(|place| place.who == who && wait_us(place.full_at, step, now_us) > 0)
    }

    fn who(&self, class: Class, address: IpAddr) -> u64 {
        let mut key = [0; 17];
        key[..16].copy_from_slice(&client(address).to_le_bytes());
        key[16] = class as u8;
        xxh3_64_with_seed(&key, self.seed).max(1)
    }

    fn place(&mut self, who: u64, now_us: u64) -> &mut Place {
        let row = &mut self.rows[who as usize & (ROWS - 1)];
        let mut best = 0;
        for (i, place) in row.iter().enumerate() {
            if place.who == who {
                best = i;
                break;
            }
            // nobody and a full bucket are alike: both have no debt
            if place.full_at.max(now_us) < row[best].full_at.max(now_us) {
                best = i;
            }
        }
        &mut row[best]
    }
}

fn wait_us(full_at: u64, step: u64, now_us: u64) -> u64 {
    (full_at + step).saturating_sub(now_us).saturating_sub(WINDOW_US)
}

/// Bytes per second that may be read and checked for addresses that are over their limit, all together.
const BUDGET_RATE: u64 = 16 << 20;
/// How many of them at once.
const BUDGET_BURST: u64 = 64 << 20;

/// The bytes that addresses over their limit may still make us check, all together: so that a right signature
/// from such an address passes, and a flood of wrong ones costs a known part of a core.
#[derive(Debug, Default)]
pub struct Budget {
    full_at: u64,
}

impl Budget {
    /// Takes `bytes` at `now_us`. Err: not now, and after how many microseconds.
    pub fn take(&mut self, bytes: u64, now_us: u64) -> Result<(), u64> {
        let to_us = |bytes: u64| bytes * 1_000_000 / BUDGET_RATE;
        let full_at = self.full_at.max(now_us) + to_us(bytes);
        let wait = full_at.saturating_sub(now_us).saturating_sub(to_us(BUDGET_BURST));
        if wait > 0 {
            return Err(wait);
        }
        self.full_at = full_at;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 7));

    fn v6(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    #[test]
    fn the_limit_may_come_at_once_and_then_one_a_step() {
        let mut table = Table::new(1);
        for _ in 0..60 {
            assert_eq!(table.take(Class::Health, A, 60, 5), Ok(()));
        }
        assert!(table.is_over(Class::Health, A, 60, 5));
        assert_eq!(table.take(Class::Health, A, 60, 5), Err(1_000_000));
        assert_eq!(table.take(Class::Health, A, 60, 1_000_005), Ok(()));
        assert!(table.take(Class::Health, A, 60, 1_000_005).is_err());
    }

    #[test]
    fn classes_and_addresses_do_not_share_and_a_64_does() {
        let mut table = Table::new(1);
        assert!(table.take(Class::Admin, v6("2001:db8::1"), 1, 0).is_ok());
        assert!(table.take(Class::Admin, v6("2001:db8::2"), 1, 0).is_err());
        assert!(table.take(Class::Ready, v6("2001:db8::2"), 1, 0).is_ok());
        assert!(table.take(Class::Admin, v6("2001:db8:0:1::1"), 1, 0).is_ok());
        assert!(table.take(Class::Admin, A, 1, 0).is_ok());
        assert!(table.take(Class::Admin, v6("::ffff:203.0.113.7"), 1, 0).is_err());
    }

    #[test]
    fn zero_is_no_limit() {
        let mut table = Table::new(1);
        assert!((0..10_000).all(|_| table.take(Class::Webhook, A, 0, 0).is_ok()));
        assert!(!table.is_over(Class::Webhook, A, 0, 0));
    }

    #[test]
    fn a_flood_of_addresses_does_not_free_the_one_in_debt() {
        let mut table = Table::new(7);
        while table.take(Class::Unverified, A, 60, 0).is_ok() {}
        for i in 0..100_000_u32 {
            let _ = table.take(Class::Unverified, IpAddr::V4(i.into()), 60, 0);
        }
        assert!(table.is_over(Class::Unverified, A, 60, 0));
    }

    #[test]
    fn the_budget_refills() {
        let mut budget = Budget::default();
        while budget.take(4 << 20, 0).is_ok() {}
        assert!(budget.take(4 << 20, 100_000).is_err());
        assert!(budget.take(4 << 20, 300_000).is_ok());
    }

    proptest! {
        #[test]
        fn never_more_than_two_limits_a_minute(
            limit in 1_u32..500,
            gaps in prop::collection::vec(0_u64..3_000_000, 1..400),
        ) {
            let mut table = Table::new(3);
            let (mut now, mut taken) = (0, Vec::new());
            for gap in gaps {
                now += gap;
                match table.take(Class::Health, A, limit, now) {
                    Ok(()) => taken.push(now),
                    Err(wait) => prop_assert!(table.take(Class::Health, A, limit, now + wait - 1).is_err()),
                }
            }
            for (i, start) in taken.iter().enumerate() {
                let within = taken[i..].iter().filter(|at| **at - start < WINDOW_US).count();
                prop_assert!(within <= 2 * limit as usize, "{within}");
            }
        }
    }
}
