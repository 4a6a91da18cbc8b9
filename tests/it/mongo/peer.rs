//! A scripted replica set, of one member or of two: holds documents, answers the few commands that the directory uses,
//! elects, and on demand says what a real one says in trouble.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, DateTime, Document, doc};
use parking_lot::Mutex;

use super::wire::{self, Frame};

/// What comes instead of the answer.
#[derive(Clone, Copy, Debug)]
pub enum Reaction {
    /// A failed command: code, its name, labels.
    Error(i32, &'static str, &'static [&'static str]),
    /// It is done, but a majority did not confirm it.
    Unconfirmed(i32, &'static str),
    /// The end of the connection.
    Close,
}

#[derive(Default)]
struct State {
    members: Vec<SocketAddr>,
    /// Which of the members; `None` between two elections.
    primary: Option<usize>,
    elections: u8,
    /// Writes that each member did.
    writes: HashMap<SocketAddr, usize>,
    documents: Vec<Document>,
    /// By the command's name: what comes next, before the script; `None` is the right answer.
    next: HashMap<&'static str, VecDeque<Option<Reaction>>>,
    /// By the command's name: how many times more, and what.
    script: HashMap<&'static str, (usize, Reaction)>,
    commands: HashMap<String, usize>,
}

pub struct Peer {
    members: Vec<SocketAddr>,
    state: Arc<Mutex<State>>,
    is_over: Arc<AtomicBool>,
}

impl Peer {
    /// One member, the primary.
    pub fn start() -> Self {
        Self::of(1)
    }

    /// A primary and a secondary, which has every document at once.
    pub fn pair() -> Self {
        Self::of(2)
    }

    fn of(count: usize) -> Self {
        let bind = |_| TcpListener::bind("127.0.0.1:0").expect("a port");
        let listeners: Vec<TcpListener> = (0..count).map(bind).collect();
        let members: Vec<SocketAddr> =
            listeners.iter().map(|listener| listener.local_addr().expect("bound")).collect();
        let state = State { members: members.clone(), primary: Some(0), ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let is_over = Arc::new(AtomicBool::new(false));
        for (listener, address) in listeners.into_iter().zip(members.clone()) {
            let (shared, over) = (Arc::clone(&state), Arc::clone(&is_over));
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    if over.load(SeqCst) {
                        break;
                    }
                    let shared = Arc::clone(&shared);
                    std::thread::spawn(move || serve(stream, address, &shared));
                }
            });
        }
        Self { members, state, is_over }
    }

    /// As a replica set, with the database `whatsapp`.
    pub fn uri(&self) -> String {
        let hosts: Vec<String> = self.members.iter().map(ToString::to_string).collect();
        format!("mongodb://{}/whatsapp?replicaSet=rs0", hosts.join(","))
    }

    /// Nobody is the primary.
    pub fn step_down(&self) {
        self.state.lock().primary = None;
    }

    /// This member is the primary from now on.
    pub fn elect(&self, member: usize) {
        let mut state = self.state.lock();
        state.primary = Some(member);
        state.elections += 1;
    }

    /// Writes that this member did.
    pub fn writes(&self, member: usize) -> usize {
        self.state.lock().writes.get(&self.members[member]).copied().unwrap_or_default()
    }

    pub fn put(&self, document: Document) {
        self.state.lock().documents.push(document);
    }

    pub fn documents(&self) -> Vec<Document> {
        self.state.lock().documents.clone()
    }

    pub fn next(&self, command: &'static str, times: usize, reaction: Reaction) {
        self.state.lock().script.insert(command, (times, reaction));
    }

    /// One after the other; `None` is the right answer, which also comes after them.
    pub fn play(&self, command: &'static str, reactions: &[Option<Reaction>]) {
        self.state.lock().next.insert(command, reactions.iter().copied().collect());
    }

    pub fn always(&self, command: &'static str, reaction: Reaction) {
        self.next(command, usize::MAX, reaction);
    }

    pub fn heal(&self) {
        self.state.lock().script.clear();
    }

    /// Commands of this name since the start.
    pub fn commands(&self, name: &str) -> usize {
        self.state.lock().commands.get(name).copied().unwrap_or_default()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.is_over.store(true, SeqCst);
        for member in &self.members {
            let _ = TcpStream::connect(member);
        }
    }
}

fn serve(mut stream: TcpStream, own: SocketAddr, state: &Mutex<State>) {
    let _ = stream.set_nodelay(true);
    while let Ok(frame) = Frame::read(&mut stream) {
        let Some(command) = frame.command() else { break };
        let answered = match state.lock().react(&command, own) {
            Some(answer) => wire::send(&mut stream, frame.id(), &answer),
            None => Err(io::ErrorKind::ConnectionAborted.into()),
        };
        if answered.is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

impl State {
    /// `None`: the connection ends.
    fn react(&mut self, command: &Document, own: SocketAddr) -> Option<Document> {
        let name = wire::name(command).to_owned();
        *self.commands.entry(name.clone()).or_default() += 1;
        let scripted = match self.next.get_mut(&*name).and_then(VecDeque::pop_front) {
            Some(next) => next,
            None => self.script.get_mut(&*name).filter(|(times, _)| *times > 0).map(|(times, reaction)| {
                *times -= 1;
                *reaction
            }),
        };
        if let Some(reaction) = scripted {
            return match reaction {
                Reaction::Close => None,
                Reaction::Error(code, name, labels) => {
                    let labels: Vec<Bson> = labels.iter().map(|label| Bson::from(*label)).collect();
                    Some(
                        doc! { "ok": 0.0, "code": code, "codeName": name, "errmsg": "as planned", "errorLabels": labels },
                    )
                }
                Reaction::Unconfirmed(code, name) => {
                    let mut answer = self.answer(&name_of(command), command, own);
                    answer.insert(
                        "writeConcernError",
                        doc! { "code": code, "codeName": name, "errmsg": "as planned" },
                    );
                    Some(answer)
                }
            };
        }
        Some(self.answer(&name, command, own))
    }

    fn answer(&mut self, name: &str, command: &Document, own: SocketAddr) -> Document {
        let is_primary = self.primary.is_some_and(|member| self.members[member] == own);
        let is_write = ["insert", "update", "delete"].contains(&name);
        if is_write && !is_primary {
            return not_primary(10_107, "NotWritablePrimary");
        }
        if name == "find" && !is_primary && !command.contains_key("$readPreference") {
            return not_primary(13_435, "NotPrimaryNoSecondaryOk");
        }
        *self.writes.entry(own).or_default() += usize::from(is_write);
        match name {
            "hello" | "ismaster" | "isMaster" => self.hello(own, is_primary),
            "find" => {
                let filter = command.get_document("filter").cloned().unwrap_or_default();
                let limit = command.get_i64("limit").unwrap_or(i64::MAX).max(0) as usize;
                let found = self.documents.iter().filter(|document| matches(document, &filter)).take(limit);
                let batch: Vec<Bson> = found.cloned().map(Bson::Document).collect();
                doc! { "ok": 1.0, "cursor": { "id": 0_i64, "ns": "whatsapp.businesses", "firstBatch": batch } }
            }
            "insert" => {
                let mut errors: Vec<Bson> = Vec::new();
                let new = documents(command, "documents");
                let count = new.len();
                for (index, document) in new.into_iter().enumerate() {
                    if self.documents.iter().any(|there| there.get("_id") == document.get("_id")) {
                        let error = doc! { "index": index as i32, "code": 11_000, "errmsg": "duplicate key" };
                        errors.push(Bson::Document(error));
                    } else {
                        self.documents.push(document);
                    }
                }
                let mut answer = doc! { "ok": 1.0, "n": (count - errors.len()) as i32 };
                if !errors.is_empty() {
                    answer.insert("writeErrors", errors);
                }
                answer
            }
            "update" => {
                let mut count = 0;
                for update in documents(command, "updates") {
                    let filter = update.get_document("q").expect("a filter");
                    let set = update.get_document("u").and_then(|u| u.get_document("$set")).expect("$set");
                    for document in self.documents.iter_mut().filter(|document| matches(document, filter)) {
                        document.extend(set.clone());
                        count += 1;
                    }
                }
                doc! { "ok": 1.0, "n": count, "nModified": count }
            }
            "ping" | "endSessions" => doc! { "ok": 1.0 },
            other => {
                doc! { "ok": 0.0, "code": 59, "codeName": "CommandNotFound", "errmsg": format!("no {other}") }
            }
        }
    }

    fn hello(&self, own: SocketAddr, is_primary: bool) -> Document {
        let hosts: Vec<String> = self.members.iter().map(ToString::to_string).collect();
        let mut hello = doc! {
            "ok": 1.0, "helloOk": true, "ismaster": is_primary, "isWritablePrimary": is_primary,
            "secondary": !is_primary, "readOnly": !is_primary, "setName": "rs0", "setVersion": 1,
            "hosts": &hosts, "me": own.to_string(), "maxBsonObjectSize": 16_777_216,
            "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000, "localTime": DateTime::now(),
            "logicalSessionTimeoutMinutes": 30, "minWireVersion": 0, "maxWireVersion": 21,
        };
        if let Some(primary) = self.primary {
            hello.insert("primary", &hosts[primary]);
        }
        if is_primary {
            hello.insert("electionId", ObjectId::from_bytes([self.elections + 1; 12]));
        }
        hello
    }
}

fn name_of(command: &Document) -> String {
    wire::name(command).to_owned()
}

fn documents(command: &Document, field: &str) -> Vec<Document> {
    let all = command.get_array(field).expect("an array");
    all.iter().map(|one| one.as_document().expect("a document").clone()).collect()
}

fn not_primary(code: i32, name: &str) -> Document {
    doc! { "ok": 0.0, "code": code, "codeName": name, "errmsg": "not the primary" }
}

/// Equality, membership of an array, and `$in`: what the directory asks for.
fn matches(document: &Document, filter: &Document) -> bool {
    filter.iter().all(|(field, wanted)| {
        let is = |value: &Bson| match wanted.as_document().and_then(|w| w.get_array("$in").ok()) {
            Some(any) => any.contains(value),
            None => value == wanted,
        };
        match document.get(field) {
            Some(Bson::Array(values)) => values.iter().any(is),
            Some(value) => is(value),
            None => false,
        }
    })
}
