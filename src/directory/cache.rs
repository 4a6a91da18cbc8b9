//! A bounded cache with a time to live: the one file that touches DashMap. No guard leaves it, so no lock of
//! it can be held across a yield.
//!
//! A hit takes one shard's read lock, allocates nothing and clones the value (an `Arc`). Time is an argument.
//! When full, an insert evicts the entry that was stored longest ago, found at the front of a queue, never by
//! a scan. An entry past its time to live is not dropped: it may be served as stale for a while if the store
//! is away.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use dashmap::mapref::entry::Entry as Slot;
use parking_lot::Mutex;

#[allow(clippy::disallowed_types, reason = "this is the file that owns the map")]
type Map<V> = dashmap::DashMap<Arc<str>, Entry<V>>;

/// Queue records beyond twice the bound that may pile up before they are swept.
const QUEUE_SLACK: usize = 64;

/// What a look into the cache found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found<V> {
    /// Within its time to live.
    Fresh(V),
    /// Past it, but not yet too old to be served while the store is away.
    Stale(V),
    /// Nothing that may be used.
    Absent,
}

/// The state of the cache that an answer belongs to: what was asked before a clear is not stored after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch(u64);

struct Entry<V> {
    value: V,
    stored_at: Duration,
    number: u64,
}

/// Which entry is the oldest. A record whose number is no longer its entry's is left over and skipped.
struct Order {
    records: VecDeque<(u64, Arc<str>)>,
    next_number: u64,
    live: usize,
    epoch: u64,
}

/// See the file's head. `V` is cheap to clone.
pub struct Cache<V> {
    map: Map<V>,
    order: Mutex<Order>,
    max: usize,
    ttl: Duration,
    stale: Duration,
}

impl<V: Clone> Cache<V> {
    /// At most `max` entries, fresh for `ttl`, then stale for `stale`.
    pub fn new(max: usize, ttl: Duration, stale: Duration) -> Self {
        let order = Order { records: VecDeque::new(), next_number: 0, live: 0, epoch: 0 };
        Self { map: Map::new(), order: Mutex::new(order), max, ttl, stale }
    }

    /// The value of `key` at the time `now` (monotonic, the same clock as in [`Cache::put`]).
    pub fn get(&self, key: &str, now: Duration) -> Found<V> {
        let Some(entry) = self.map.get(key) else { return Found::Absent };
        let age = now.saturating_sub(entry.stored_at);
        if age < self.ttl {
            Found::Fresh(entry.value.clone())
        } else if age < self.ttl.saturating_add(self.stale) {
            Found::Stale(entry.value.clone())
        } else {
            Found::Absent
        }
    }

    /// Take it before the store is asked, hand it to [`Cache::put`] with the answer.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.order.lock().epoch)
    }

    /// Stores what the store said when it was asked at `asked_at`; the entry becomes the youngest.
    /// Returns how many entries were evicted for it (0 or 1). Does nothing if the cache was cleared since
    /// `epoch`.
    pub fn put(&self, key: &str, value: V, asked_at: Duration, epoch: Epoch) -> usize {
        let mut order = self.order.lock();
        if self.max == 0 || order.epoch != epoch.0 {
            return 0;
        }
        let number = order.next_number;
        order.next_number += 1;
        let key: Arc<str> = key.into();
        let replaced = self.map.insert(key.clone(), Entry { value, stored_at: asked_at, number });
        order.records.push_back((number, key));
        if replaced.is_none() {
            order.live += 1;
        }
        let evicted = if order.live > self.max { self.evict(&mut order) } else { 0 };
        self.sweep(&mut order);
        drop(order);
        drop(replaced);
        evicted
    }

    /// Forgets `key`, unless the cache was cleared since `epoch`.
    pub fn remove(&self, key: &str, epoch: Epoch) {
        let mut order = self.order.lock();
        if order.epoch == epoch.0 && self.map.remove(key).is_some() {
            order.live -= 1;
        }
    }

    /// Forgets all.
    pub fn clear(&self) {
        let mut order = self.order.lock();
        order.epoch += 1;
        order.records.clear();
        order.live = 0;
        self.map.clear();
    }

    /// How many entries there are, stale ones included.
    pub fn len(&self) -> usize {
        self.order.lock().live
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn evict(&self, order: &mut Order) -> usize {
        while let Some((number, key)) = order.records.pop_front() {
            if let Slot::Occupied(slot) = self.map.entry(key)
                && slot.get().number == number
            {
                slot.remove();
                order.live -= 1;
                return 1;
            }
        }
        0
    }

    /// Left-over records cost memory only; dropping them all at twice the bound costs O(1) per insert over
    /// time.
    fn sweep(&self, order: &mut Order) {
        if order.records.len() <= 2 * self.max + QUEUE_SLACK {
            return;
        }
        order
            .records
            .retain(|(number, key)| self.map.get(key.as_ref()).is_some_and(|entry| entry.number == *number));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TTL: Duration = Duration::from_secs(300);
    const STALE: Duration = Duration::from_secs(3600);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn cache(max: usize) -> Cache<u32> {
        Cache::new(max, TTL, STALE)
    }

    #[test]
    fn an_entry_is_fresh_then_stale_then_gone() {
        let cache = cache(10);
        cache.put("a", 1, at(100), cache.epoch());
        assert_eq!(cache.get("a", at(399)), Found::Fresh(1));
        assert_eq!(cache.get("a", at(400)), Found::Stale(1));
        assert_eq!(cache.get("a", at(3999)), Found::Stale(1));
        assert_eq!(cache.get("a", at(4000)), Found::Absent);
        assert_eq!(cache.get("b", at(100)), Found::Absent);
    }

    #[test]
    fn the_entry_stored_longest_ago_is_evicted_and_a_refresh_makes_young() {
        let cache = cache(3);
        for (n, key) in ["a", "b", "c"].into_iter().enumerate() {
            assert_eq!(cache.put(key, n as u32, at(0), cache.epoch()), 0);
        }
        assert_eq!(cache.put("a", 9, at(1), cache.epoch()), 0, "a refresh evicts nothing");
        assert_eq!(cache.put("d", 3, at(2), cache.epoch()), 1);
        assert_eq!(cache.get("b", at(2)), Found::Absent, "b was the oldest");
        assert_eq!(cache.get("a", at(2)), Found::Fresh(9));
        assert_eq!(cache.len(), 3);
    }

    #[test]
    fn an_answer_from_before_a_clear_is_not_stored_after_it() {
        let cache = cache(3);
        let before = cache.epoch();
        cache.put("a", 1, at(0), before);
        cache.clear();
        cache.put("a", 1, at(0), before);
        cache.remove("a", before);
        assert_eq!(cache.get("a", at(0)), Found::Absent);
        assert!(cache.is_empty());
    }

    #[test]
    fn refreshing_for_ever_does_not_grow_the_queue() {
        let cache = cache(4);
        for n in 0..10_000 {
            cache.put(["a", "b"][n % 2], n as u32, at(0), cache.epoch());
        }
        assert!(cache.order.lock().records.len() <= 2 * 4 + QUEUE_SLACK);
        assert_eq!(cache.len(), 2);
    }

    #[test]
    fn a_cache_of_size_zero_keeps_nothing() {
        let cache = cache(0);
        cache.put("a", 1, at(0), cache.epoch());
        assert!(cache.is_empty());
    }

    #[test]
    fn threads_that_put_remove_and_clear_at_once_leave_it_consistent() {
        let cache = cache(50);
        std::thread::scope(|scope| {
            for thread in 0..4_u32 {
                let cache = &cache;
                scope.spawn(move || {
                    for n in 0..20_000_u32 {
                        let key = (n.wrapping_mul(2_654_435_761).wrapping_add(thread) % 200).to_string();
                        match n % 100 {
                            0..60 => drop(cache.put(&key, n, at(0), cache.epoch())),
                            60..98 => drop(cache.get(&key, at(0))),
                            98 => cache.remove(&key, cache.epoch()),
                            _ if n % 5_000 == 4_999 => cache.clear(),
                            _ => {}
                        }
                        assert!(cache.len() <= 50);
                    }
                });
            }
        });
        assert_eq!(cache.map.len(), cache.len());
        let order = cache.order.lock();
        let queued = order
            .records
            .iter()
            .filter(|(number, key)| cache.map.get(key.as_ref()).is_some_and(|entry| entry.number == *number));
        assert_eq!(queued.count(), order.live, "every entry can be evicted");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(u8, u32),
        PutLate(u8, u32),
        Get(u8),
        Remove(u8),
        Pass(u64),
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0u8..12, any::<u32>()).prop_map(|(k, v)| Step::Put(k, v)),
            1 => (0u8..12, any::<u32>()).prop_map(|(k, v)| Step::PutLate(k, v)),
            6 => (0u8..12).prop_map(Step::Get),
            1 => (0u8..12).prop_map(Step::Remove),
            2 => (0u64..2000).prop_map(Step::Pass),
            1 => Just(Step::Clear),
        ]
    }

    proptest! {
        /// The model is a list, oldest first, searched from end to end.
        #[test]
        fn it_behaves_like_a_list(max in 0usize..8, steps in prop::collection::vec(step(), 0..300)) {
            let cache = cache(max);
            let mut model: Vec<(u8, u32, u64)> = Vec::new();
            let mut now = 0;
            let mut last_epoch = None;
            for step in steps {
                match step {
                    Step::Put(k, v) => {
                        cache.put(&k.to_string(), v, at(now), cache.epoch());
                        model.retain(|(key, ..)| *key != k);
                        model.push((k, v, now));
                        if model.len() > max {
                            model.remove(0);
                        }
                    }
                    Step::PutLate(k, v) => if let Some(epoch) = last_epoch {
                        cache.put(&k.to_string(), v, at(now), epoch);
                    },
                    Step::Get(k) => {
                        let expected = match model.iter().find(|(key, ..)| *key == k) {
                            Some((_, v, t)) if now - t < 300 => Found::Fresh(*v),
                            Some((_, v, t)) if now - t < 3900 => Found::Stale(*v),
                            _ => Found::Absent,
                        };
                        prop_assert_eq!(cache.get(&k.to_string(), at(now)), expected);
                    }
                    Step::Remove(k) => {
                        cache.remove(&k.to_string(), cache.epoch());
                        model.retain(|(key, ..)| *key != k);
                    }
                    Step::Pass(seconds) => now += seconds,
                    Step::Clear => {
                        last_epoch = Some(cache.epoch());
                        cache.clear();
                        model.clear();
                    }
                }
                prop_assert_eq!(cache.len(), model.len());
                prop_assert_eq!(cache.map.len(), model.len());
            }
        }
    }
}
