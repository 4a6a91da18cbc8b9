//! An inbox that records bodies and can refuse, stall and panic, and a console that says what it is told to.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use whatsapp_webhook::event::Item;
use whatsapp_webhook::inbox::{Inbox, Refusal, Ticket};
use whatsapp_webhook::ops::Console;

use crate::stub_inbox::StubInbox;

#[derive(Default)]
pub struct Books {
    pub bodies: Mutex<Vec<(u64, Vec<u8>)>>,
    pub refuse: AtomicU8,
    pub stall: AtomicBool,
    pub waiting: AtomicUsize,
    pub tickets: AtomicUsize,
    pub panics: AtomicBool,
}

/// Its tickets write into the books.
pub fn fake_inbox(books: Arc<Books>) -> Arc<dyn Inbox> {
    Arc::new(StubInbox(move || -> Box<dyn Ticket> {
        books.tickets.fetch_add(1, SeqCst);
        Box::new(FakeTicket { books: books.clone(), body: Vec::new(), items: Vec::new() })
    }))
}

pub struct FakeTicket {
    books: Arc<Books>,
    body: Vec<u8>,
    items: Vec<Item>,
}

impl Ticket for FakeTicket {
    fn body(&mut self) -> &mut Vec<u8> {
        &mut self.body
    }
    fn body_and_items(&mut self) -> (&[u8], &mut Vec<Item>) {
        (&self.body, &mut self.items)
    }
    fn append(&mut self, app: u64) -> Result<(), Refusal> {
        assert!(!self.books.panics.load(SeqCst), "the inbox was told to panic");
        self.books.waiting.fetch_add(1, SeqCst);
        while self.books.stall.load(SeqCst) {
            whatsapp_webhook::clock::sleep(Duration::from_millis(1));
        }
        self.books.waiting.fetch_sub(1, SeqCst);
        let refusal = match self.books.refuse.load(SeqCst) {
            0 => None,
            1 => Some(Refusal::Poisoned),
            2 => Some(Refusal::Full),
            3 => Some(Refusal::Late),
            _ => Some(Refusal::Draining),
        };
        let body = std::mem::take(&mut self.body);
        self.items.clear();
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        self.books.bodies.lock().expect("no test panics with it").push((app, body));
        Ok(())
    }
}

#[derive(Default)]
pub struct FakeConsole {
    pub sick: AtomicBool,
    pub cold: AtomicBool,
    pub connected: AtomicBool,
    pub cleared: AtomicUsize,
    pub large: AtomicBool,
}

impl Console for FakeConsole {
    fn health(&self) -> Result<(), &'static str> {
        if self.sick.load(SeqCst) { Err("the \"store\" failed") } else { Ok(()) }
    }
    fn database_connected(&self) -> bool {
        self.connected.load(SeqCst)
    }
    fn ready(&self) -> Result<(), &'static str> {
        if self.cold.load(SeqCst) { Err("starting") } else { Ok(()) }
    }
    fn metrics_json(&self) -> String {
        r#"{"cache":{}}"#.to_owned()
    }
    fn metrics_text(&self) -> String {
        if self.large.load(SeqCst) {
            return "# large\n".repeat(1 << 20);
        }
        "# HELP whatsapp_webhook_x y\n".to_owned()
    }
    fn clear_cache(&self) {
        self.cleared.fetch_add(1, SeqCst);
    }
    fn warm_up_cache(&self) -> Result<(), String> {
        if self.connected.load(SeqCst) {
            Ok(())
        } else {
            Err("mongodb://user:password@host is away".to_owned())
        }
    }
}
