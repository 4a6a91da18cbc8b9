//! What the driver's errors mean: whether they pass by themselves, whether a change may have been made, and what
//! to tell, without the password and without a document's content.

use mongodb::error::{Error, ErrorKind, WriteFailure};

use crate::secret::Secret;

/// The longest text of a server that is passed on, in characters.
const SAID_MAX: usize = 300;

/// Not primary, shutting down, or interrupted by either; and host or network errors between servers.
/// Source: the specification "Retryable Writes" of MongoDB's drivers.
const PASSING: [i32; 13] = [6, 7, 89, 91, 134, 189, 262, 9001, 10_107, 11_600, 11_602, 13_435, 13_436];
/// A server on SQLite that was busy answers with this; elsewhere it is an internal error, which is not retried.
const BUSY: (i32, &str) = (1, "database is locked");
const UNAUTHORIZED: i32 = 13;
const AUTHENTICATION_FAILED: i32 = 18;
/// A unique index holds the key already.
const DUPLICATE_KEY: i32 = 11_000;

/// An error as it is told.
#[derive(Debug)]
pub struct Cause {
    /// For the log and the operator.
    pub text: String,
    /// A change may have been made all the same, or may still be.
    pub may_be_done: bool,
}

/// Whether trying again may help: a fail-over, a lost connection, a server that is away.
pub fn is_passing(error: &Error) -> bool {
    if error.contains_label("RetryableWriteError") || error.contains_label("RetryableError") {
        return true;
    }
    match &*error.kind {
        ErrorKind::Io(_)
        | ErrorKind::ConnectionPoolCleared { .. }
        | ErrorKind::ServerSelection { .. }
        | ErrorKind::DnsResolve { .. } => true,
        ErrorKind::Command(command) => {
            PASSING.contains(&command.code) || (command.code == BUSY.0 && command.message.contains(BUSY.1))
        }
        ErrorKind::Write(WriteFailure::WriteError(write)) => PASSING.contains(&write.code),
        ErrorKind::Write(WriteFailure::WriteConcernError(concern)) => PASSING.contains(&concern.code),
        ErrorKind::InsertMany(insert) => {
            insert.write_concern_error.as_ref().is_some_and(|concern| PASSING.contains(&concern.code))
        }
        _ => false,
    }
}

/// Whether nothing but keys that are there already stood in the way.
pub fn is_duplicate_only(error: &Error) -> bool {
    match &*error.kind {
        ErrorKind::InsertMany(insert) => {
            insert.write_concern_error.is_none()
                && insert.write_errors.iter().flatten().all(|one| one.code == DUPLICATE_KEY)
        }
        _ => false,
    }
}

/// What is told of `error`. A command's own message is left out where it may quote a document.
pub fn cause(error: &Error, uri: &Secret) -> Cause {
    let (text, may_be_done) = match &*error.kind {
        ErrorKind::Authentication { .. } => (unauthenticated(), false),
        ErrorKind::Command(command) => (said(command.code, &command.code_name), false),
        ErrorKind::Write(WriteFailure::WriteError(write)) => {
            (said(write.code, write.code_name.as_deref().unwrap_or_default()), false)
        }
        ErrorKind::Write(WriteFailure::WriteConcernError(concern)) => {
            (unconfirmed(concern.code, &concern.code_name), true)
        }
        ErrorKind::InsertMany(insert) => match (&insert.write_concern_error, &insert.write_errors) {
            (Some(concern), _) => (unconfirmed(concern.code, &concern.code_name), true),
            (None, Some(errors)) => {
                let first = errors.first();
                let (code, name) = first.map_or((0, None), |one| (one.code, one.code_name.as_deref()));
                (
                    format!(
                        "{} of the inserts failed: {}",
                        errors.len(),
                        said(code, name.unwrap_or_default())
                    ),
                    true,
                )
            }
            (None, None) => ("an insert failed".to_owned(), true),
        },
        ErrorKind::ServerSelection { message, .. } => {
            (format!("no server of MONGODB_URI can be reached: {}", bounded(&without_debug(message))), false)
        }
        ErrorKind::DnsResolve { message, .. } => {
            (format!("the name in MONGODB_URI can't be looked up: {}", bounded(message)), false)
        }
        ErrorKind::Io(io) => (format!("the connection to MongoDB failed: {io}"), true),
        ErrorKind::ConnectionPoolCleared { .. } => ("the connection to MongoDB was lost".to_owned(), true),
        ErrorKind::InvalidTlsConfig { message, .. } => {
            (format!("MONGODB_URI asks for TLS that can't be set up: {}", bounded(message)), false)
        }
        ErrorKind::IncompatibleServer { message, .. } => {
            (format!("this MongoDB server can't be used: {}", bounded(message)), false)
        }
        ErrorKind::BsonDeserialization(_) | ErrorKind::InvalidResponse { .. } => {
            ("MongoDB sent an answer that can't be read".to_owned(), false)
        }
        other => (format!("MongoDB's driver: {}", bounded(&other.to_string())), true),
    };
    Cause { text: without_password(text, uri), may_be_done }
}

fn unauthenticated() -> String {
    "MongoDB refused the user or the password of MONGODB_URI (is authSource right?)".to_owned()
}

fn said(code: i32, name: &str) -> String {
    match code {
        AUTHENTICATION_FAILED => unauthenticated(),
        UNAUTHORIZED => {
            "the user of MONGODB_URI has not the right to do this in the collection `businesses` (Unauthorized, 13)"
                .to_owned()
        }
        _ => format!("MongoDB answered with error {code} {}", bounded(name)),
    }
}

fn unconfirmed(code: i32, name: &str) -> String {
    format!("a majority of the servers did not confirm it (error {code} {})", bounded(name))
}

/// The driver prints parts of its own structures into this message.
fn without_debug(message: &str) -> String {
    let mut text = String::new();
    for (n, part) in message.split(", labels: ").enumerate() {
        let rest =
            if n == 0 { part } else { part.split_once("server response: None").map_or("", |(_, rest)| rest) };
        text.push_str(&rest.replace("Error: Kind: ", ""));
    }
    text
}

fn bounded(text: &str) -> String {
    text.chars().take(SAID_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// No message of the driver shows it as far as known; what is not known is not shown either.
fn without_password(text: String, uri: &Secret) -> String {
    let authority = uri.reveal().split("://").nth(1).unwrap_or_default();
    let Some((user_info, _)) = authority.split('?').next().and_then(|part| part.rsplit_once('@')) else {
        return text;
    };
    let Some((_, password)) = user_info.split_once(':') else { return text };
    if password.is_empty() {
        return text;
    }
    let text = text.replace(password, "***");
    let decoded: String = form_urlencoded::parse(format!("p={}", password.replace('+', "%2B")).as_bytes())
        .map(|(_, value)| value.into_owned())
        .collect();
    if decoded.is_empty() { text } else { text.replace(&decoded, "***") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_a_message_is_not_shown_in_either_form() {
        let uri = Secret::new("mongodb://user:p%40ss%2Bw@host:1/db?x=1");
        let text = without_password("host refused p%40ss%2Bw and p@ss+w".to_owned(), &uri);
        assert_eq!(text, "host refused *** and ***");
        let none = Secret::new("mongodb://host/db");
        assert_eq!(without_password("as it is".to_owned(), &none), "as it is");
    }

    #[test]
    fn the_servers_and_what_they_said_are_told_without_the_drivers_structures() {
        let message = r#"Timeout. Topology: { Type: Unknown, Servers: [ { Address: a:1, Type: Unknown, Error: Kind: I/O error: refused, labels: {"x"}, source: None, server response: None } ] }"#;
        let text = "Timeout. Topology: { Type: Unknown, Servers: [ { Address: a:1, Type: Unknown, \
                    I/O error: refused } ] }";
        assert_eq!(without_debug(message), text);
        assert_eq!(without_debug("plain"), "plain");
    }

    #[test]
    fn what_passes_is_told_from_what_stays() {
        let io = Error::from(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        assert!(is_passing(&io) && cause(&io, &Secret::new("mongodb://h")).may_be_done);
        let custom = Error::custom("a bug");
        assert!(!is_passing(&custom));
    }
}
