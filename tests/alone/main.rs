//! Tests that need a process of their own: one counts allocations, one reads what is logged.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use whatsapp_webhook::config;
use whatsapp_webhook::directory::Directory;
use whatsapp_webhook::directory::lookup::Lookup;
use whatsapp_webhook::directory::store::{Page, Record, Store, StoreError, Swap};
use whatsapp_webhook::directory::tokens::Keys;
use whatsapp_webhook::secret::Secret;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting per thread.
struct Counting;

#[allow(unsafe_code, reason = "an allocator can't be written without")]
// SAFETY: every call goes to the system's allocator as it came; the counter is a plain cell that allocates
// nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise about `pointer` and `layout` is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

const TOKEN: &str = "EAAGm0PX4ZCpsBAO-a-token-that-must-not-be-seen";

fn settings() -> config::Directory {
    config::Directory {
        data_dir: std::path::PathBuf::new(),
        encryption_secret: Some(Secret::new("right")),
        encryption_secret_old: None,
        cache_ttl: Duration::from_secs(300),
        cache_size: 1000,
        warmup: false,
        fallback: None,
        pool: (0, 0),
        mongodb: None,
    }
}

/// Business 1 is right, 2 is encrypted with another secret, 3 is plaintext, 4 and 5 share the number 4.
struct Five(Vec<Record>);

impl Five {
    fn new() -> Arc<Self> {
        let names = [("1", "b1"), ("2", "b2"), ("3", "b3"), ("4", "b4"), ("4", "b5")];
        Arc::new(Self(names.map(|(number, name)| record(number, name)).to_vec()))
    }
}

fn record(number: &str, name: &str) -> Record {
    let encrypted = |secret: &str| Keys::new(Some(&Secret::new(secret)), None).encrypt(&Secret::new(TOKEN));
    Record {
        id: name.to_owned(),
        name: name.to_owned(),
        waba_id: String::new(),
        phone_number_ids: vec![number.to_owned()],
        access_token: match number {
            "2" => encrypted("wrong"),
            "3" => Some(Secret::new(TOKEN)),
            _ => encrypted("right"),
        },
        ..Record::new(name)
    }
}

impl Store for Five {
    fn by_number(&self, number: &str) -> Result<Vec<Record>, StoreError> {
        let found: Vec<Record> = self.0.iter().filter(|r| r.phone_number_ids[0] == number).cloned().collect();
        if found.is_empty() {
            return Err(StoreError::Unavailable("away".to_owned()));
        }
        Ok(found)
    }
    fn by_subdomain(&self, _: &str) -> Result<Vec<Record>, StoreError> {
        Ok(Vec::new())
    }
    fn page(&self, _: Option<&str>, _: usize) -> Result<Page, StoreError> {
        Ok(Page::default())
    }
    fn upsert(&self, _: Vec<Record>) -> Result<(), StoreError> {
        Ok(())
    }
    fn remove(&self, _: &str) -> Result<bool, StoreError> {
        Ok(false)
    }
    fn swap_tokens(&self, _: Vec<Swap>) -> Result<usize, StoreError> {
        Ok(0)
    }
    fn check(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[test]
fn a_hit_in_the_directory_allocates_nothing() {
    let lookup = Lookup::new(&settings(), Five::new());
    assert!(allocations(|| assert!(lookup.by_number("1").is_ok())) > 0, "a miss does, so the counter works");
    let hits = allocations(|| {
        for _ in 0..1000 {
            assert!(lookup.by_number("1").is_ok());
        }
    });
    assert_eq!(hits, 0);
    assert_eq!(lookup.stats().hits, 1000);
}

static LOGGED: Mutex<Vec<(log::Level, String)>> = Mutex::new(Vec::new());

struct Capture;

impl log::Log for Capture {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        if record.target().starts_with("whatsapp_webhook::directory") {
            LOGGED.lock().expect("not poisoned").push((record.level(), record.args().to_string()));
        }
    }
    fn flush(&self) {}
}

#[test]
fn trouble_with_a_business_is_told_once_and_without_its_token() {
    log::set_logger(&Capture).expect("the only one");
    log::set_max_level(log::LevelFilter::Trace);
    let lookup = Lookup::new(&settings(), Five::new());
    for round in 0..20 {
        let now = Duration::from_secs(1000 * round);
        for number in ["1", "2", "3", "4", "16505550000"] {
            let _ = lookup.by_number_at(number, now).map_err(|failure| {
                assert!(!format!("{failure:?}").contains(TOKEN));
            });
        }
    }
    lookup.clear();
    assert!(lookup.by_number("2").is_err());
    let logged = std::mem::take(&mut *LOGGED.lock().expect("not poisoned"));
    let count = |level: log::Level, part: &str| {
        logged.iter().filter(|(at, text)| *at == level && text.contains(part)).count()
    };
    assert_eq!(count(log::Level::Error, "b2"), 2, "once, and once more after a clear: {logged:?}");
    assert_eq!(count(log::Level::Warn, "b3"), 1, "{logged:?}");
    assert_eq!(count(log::Level::Error, "b4, b5"), 1, "{logged:?}");
    assert!(logged.iter().all(|(_, text)| !text.contains("EAAG") && !text.contains("16505550000")));
}
