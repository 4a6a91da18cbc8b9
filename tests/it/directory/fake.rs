//! A store that counts, fails and hangs on demand.

use super::*;

/// A store in memory.
#[derive(Default)]
pub struct Fake {
    pub records: Mutex<Vec<Record>>,
    pub asked: AtomicUsize,
    pub is_down: AtomicBool,
    pub panics: AtomicBool,
    pub takes: Mutex<Duration>,
}

impl Fake {
    fn answer<T>(&self, answer: impl FnOnce(&[Record]) -> T) -> Result<T, StoreError> {
        self.asked.fetch_add(1, SeqCst);
        let takes = *self.takes.lock();
        if !takes.is_zero() {
            clock::sleep(takes);
        }
        assert!(!self.panics.load(SeqCst), "as planned");
        if self.is_down.load(SeqCst) {
            return Err(StoreError::Unavailable("it is away".to_owned()));
        }
        Ok(answer(&self.records.lock()))
    }
    pub fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }
}

impl Store for Fake {
    fn by_number(&self, number: &str) -> Result<Vec<Record>, StoreError> {
        let has = |r: &&Record| r.phone_number_ids.iter().any(|n| n == number);
        self.answer(|records| records.iter().filter(has).cloned().collect())
    }
    fn by_subdomain(&self, name: &str) -> Result<Vec<Record>, StoreError> {
        self.answer(|records| records.iter().filter(|r| r.sub_domain == name).cloned().collect())
    }
    fn page(&self, after: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        let after = after.unwrap_or_default();
        self.answer(|records| {
            let mut sorted: Vec<Record> = records.iter().filter(|r| &*r.id > after).cloned().collect();
            sorted.sort_by(|a, b| a.id.cmp(&b.id));
            sorted.truncate(limit);
            let next = sorted.last().filter(|_| sorted.len() == limit).map(|r| r.id.clone());
            Page { records: sorted, next }
        })
    }
    fn upsert(&self, _: Vec<Record>) -> Result<(), StoreError> {
        unreachable!("the directory only reads")
    }
    fn remove(&self, _: &str) -> Result<bool, StoreError> {
        unreachable!("the directory only reads")
    }
    fn swap_tokens(&self, _: Vec<Swap>) -> Result<usize, StoreError> {
        Ok(0)
    }
    fn check(&self) -> Result<(), StoreError> {
        self.answer(|_| ())
    }
}
