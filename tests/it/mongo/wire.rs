//! OP_MSG, the one message of MongoDB's wire protocol that is left: as much of it as a proxy that counts and a
//! scripted server need.
//! Source: <https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/>.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use mongodb::bson::{Bson, Document};

const OP_MSG: i32 = 2013;
const HEADER: usize = 16;
const MESSAGE_MAX: usize = 48_000_000;
const CHECKSUM_PRESENT: u32 = 1;

/// One message as it came, header included.
pub struct Frame(pub Vec<u8>);

impl Frame {
    /// The next message, or an error at the end of the stream.
    pub fn read(stream: &mut TcpStream) -> io::Result<Self> {
        let mut header = [0; HEADER];
        stream.read_exact(&mut header)?;
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        if !(HEADER..=MESSAGE_MAX).contains(&length) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = header.to_vec();
        bytes.resize(length, 0);
        stream.read_exact(&mut bytes[HEADER..])?;
        Ok(Self(bytes))
    }

    fn int(&self, at: usize) -> i32 {
        i32::from_le_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }

    pub fn id(&self) -> i32 {
        self.int(4)
    }

    /// The command's document, with the documents of the further sections as its arrays.
    pub fn command(&self) -> Option<Document> {
        if self.int(12) != OP_MSG {
            return None;
        }
        let flags = self.int(HEADER) as u32;
        let end = self.0.len() - if flags & CHECKSUM_PRESENT != 0 { 4 } else { 0 };
        let mut at = HEADER + 4;
        let mut command = Document::new();
        let mut more = Vec::new();
        while at < end {
            let kind = self.0[at];
            let size = self.int(at + 1) as usize;
            let section = &self.0[at + 1..at + 1 + size];
            if kind == 0 {
                command = Document::from_reader(section).ok()?;
            } else {
                let name_end = 4 + section[4..].iter().position(|b| *b == 0)?;
                let name = String::from_utf8_lossy(&section[4..name_end]).into_owned();
                let mut rest = &section[name_end + 1..];
                let mut documents = Vec::new();
                while !rest.is_empty() {
                    documents.push(Bson::Document(Document::from_reader(&mut rest).ok()?));
                }
                more.push((name, Bson::Array(documents)));
            }
            at += 1 + size;
        }
        command.extend(more);
        Some(command)
    }
}

/// The command's name.
pub fn name(command: &Document) -> &str {
    command.keys().next().map_or("", String::as_str)
}

/// In a text of an answer: goes out as three bytes that are not UTF-8.
pub const BROKEN: &str = "\u{fdd0}";

/// The bytes of an answer.
pub fn answer(to: i32, document: &Document) -> Vec<u8> {
    let mut body = document.to_vec().expect("a document");
    while let Some(at) = body.windows(BROKEN.len()).position(|part| part == BROKEN.as_bytes()) {
        body[at..at + BROKEN.len()].fill(0xff);
    }
    let length = (HEADER + 5 + body.len()) as i32;
    let mut bytes = Vec::with_capacity(length as usize);
    for int in [length, to, to, OP_MSG, 0] {
        bytes.extend_from_slice(&int.to_le_bytes());
    }
    bytes.push(0);
    bytes.extend_from_slice(&body);
    bytes
}

pub fn send(stream: &mut TcpStream, to: i32, document: &Document) -> io::Result<()> {
    stream.write_all(&answer(to, document))
}
