//! Access tokens as the store keeps them: pure, no I/O, no clock.
//!
//! Stored form: the Fernet token (<https://github.com/fernet/spec/blob/master/Spec.md>, an ASCII text),
//! hex-encoded once more; the Fernet key is urlsafe-base64(SHA-256(ENCRYPTION_SECRET)). Stored tokens have no
//! TTL and their timestamp decides nothing: neither age nor a clock that was ahead when they were written
//! makes them unreadable. A value that is not hex, or is shorter than [`ENCRYPTED_MIN`], is a plaintext token
//! of older days and is used as it is. Nothing here puts a token into an error, a log line or a map's key.

use std::collections::{HashMap, VecDeque};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use fernet::Fernet;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::secret::Secret;

/// A stored text shorter than this, in characters, is not an encrypted token.
pub const ENCRYPTED_MIN: usize = 64;
/// The longest token, in characters; a longer one is invalid.
pub const TOKEN_MAX: usize = 400;
/// Decrypted tokens that are remembered.
pub const MEMO_MAX: usize = 10_000;

/// The reader's clock, as late as the crate's own allowance for clock skew (60 s) can be added to it: with it
/// no timestamp is "in the future".
const END_OF_TIME: u64 = u64::MAX - 60;

/// How a token was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Encrypted with ENCRYPTION_SECRET.
    Encrypted,
    /// Encrypted with ENCRYPTION_SECRET_OLD: `key rotate` has not reached it.
    EncryptedOld,
    /// In the clear.
    Plaintext,
}

/// A token that can be used, and how it was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The token itself: not blank, at most [`TOKEN_MAX`] characters, fit for an HTTP header.
    pub secret: Secret,
    /// How it was stored.
    pub form: Form,
}

/// Why a stored token can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Nothing is stored.
    Missing,
    /// It is encrypted, and there is no ENCRYPTION_SECRET.
    NoSecret,
    /// It is encrypted, but not with this ENCRYPTION_SECRET (or it is damaged: Fernet can't tell the two
    /// apart).
    WrongSecret,
    /// The token inside is blank.
    Blank,
    /// The token inside is longer than [`TOKEN_MAX`].
    TooLong,
    /// The token inside has white space, a control character or something that is not ASCII: it can't be
    /// sent.
    Malformed,
}

impl Unreadable {
    /// For the log and the operator: what is wrong and what mends it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "no access token is stored; `business add` stores one",
            Self::NoSecret => "the access token is encrypted and ENCRYPTION_SECRET is not set",
            Self::WrongSecret => "the access token can't be decrypted with this ENCRYPTION_SECRET",
            Self::Blank => "the access token is blank",
            Self::TooLong => "the access token is longer than 400 characters",
            Self::Malformed => "the access token has characters that no token has",
        }
    }
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The keys that stored tokens are read with; the first also encrypts.
pub struct Keys {
    current: Option<Fernet>,
    old: Option<Fernet>,
}

impl Keys {
    /// From ENCRYPTION_SECRET and ENCRYPTION_SECRET_OLD. Without either only plaintext tokens can be read.
    pub fn new(current: Option<&Secret>, old: Option<&Secret>) -> Self {
        Self { current: current.map(fernet), old: old.map(fernet) }
    }

    /// The stored form of `token`; `None` without an ENCRYPTION_SECRET. Not checked here: see [`check`].
    pub fn encrypt(&self, token: &Secret) -> Option<Secret> {
        let fernet = self.current.as_ref()?;
        Some(Secret::new(hex::encode(fernet.encrypt(token.reveal().as_bytes()))))
    }

    /// Whether `stored` counts as encrypted: hex and long enough.
    pub fn is_encrypted(stored: &str) -> bool {
        stored.len() >= ENCRYPTED_MIN
            && stored.len().is_multiple_of(2)
            && stored.bytes().all(|b| b.is_ascii_hexdigit())
    }

    /// The token in its stored form. White space around either is not part of it.
    pub fn read(&self, stored: &str) -> Result<Token, Unreadable> {
        let stored = stored.trim();
        if stored.is_empty() {
            return Err(Unreadable::Missing);
        }
        if !Self::is_encrypted(stored) {
            return Ok(Token { secret: check(stored)?, form: Form::Plaintext });
        }
        if self.current.is_none() && self.old.is_none() {
            return Err(Unreadable::NoSecret);
        }
        let text = hex::decode(stored).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let text = text.ok_or(Unreadable::WrongSecret)?;
        for (fernet, form) in [(&self.current, Form::Encrypted), (&self.old, Form::EncryptedOld)] {
            let Some(fernet) = fernet else { continue };
            if let Ok(bytes) = fernet.decrypt_at_time(&text, None, END_OF_TIME) {
                return Ok(Token { secret: checked_bytes(bytes)?, form });
            }
        }
        Err(Unreadable::WrongSecret)
    }
}

/// What a rotation makes of a stored token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rotated {
    /// Encrypted with the current secret already.
    Current,
    /// It was encrypted with the old secret; this takes its place.
    To(Secret),
    /// Stored in the clear: nothing to rotate.
    Plaintext,
    /// Neither secret opens it.
    Unreadable,
}

impl Keys {
    /// Encrypts what the old secret encrypted with the current one, whatever is inside.
    pub fn rotate(&self, stored: &Secret) -> Rotated {
        let text = stored.reveal().trim();
        if !Self::is_encrypted(text) {
            return Rotated::Plaintext;
        }
        let Some(text) = hex::decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok()) else {
            return Rotated::Unreadable;
        };
        let opened = |fernet: &Option<Fernet>| {
            let bytes = fernet.as_ref()?.decrypt_at_time(&text, None, END_OF_TIME).ok()?;
            Some(Zeroizing::new(bytes))
        };
        if opened(&self.current).is_some() {
            return Rotated::Current;
        }
        match (opened(&self.old), &self.current) {
            (Some(inside), Some(current)) => Rotated::To(Secret::new(hex::encode(current.encrypt(&inside)))),
            _ => Rotated::Unreadable,
        }
    }
}

fn fernet(secret: &Secret) -> Fernet {
    let mut digest = Sha256::digest(secret.reveal().as_bytes());
    let key = Zeroizing::new(URL_SAFE.encode(digest));
    digest.as_mut_slice().zeroize();
    Fernet::new(&key).expect("32 bytes in urlsafe base64 are a Fernet key")
}

fn checked_bytes(bytes: Vec<u8>) -> Result<Secret, Unreadable> {
    let bytes = Zeroizing::new(bytes);
    check(std::str::from_utf8(&bytes).map_err(|_| Unreadable::Malformed)?)
}

/// The token in `text`, without white space around it.
///
/// Errors: blank, over [`TOKEN_MAX`], or with a character that can't stand in an Authorization header (RFC
/// 9110, section 5.5: visible ASCII only; a line end in it would be a header of its own).
pub fn check(text: &str) -> Result<Secret, Unreadable> {
    let token = text.trim();
    if token.is_empty() {
        return Err(Unreadable::Blank);
    }
    if token.chars().count() > TOKEN_MAX {
        return Err(Unreadable::TooLong);
    }
    if !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Unreadable::Malformed);
    }
    Ok(Secret::new(token))
}

/// The fingerprint that stands for a stored text. XXH3-128 with a seed of this process, so that nobody can
/// choose two stored texts that meet; SHA-256 over a stored token would cost as much as decrypting it.
type Print = u128;

/// Remembers up to a bound what was decrypted, oldest out first. Knows stored texts by their fingerprint
/// only.
pub struct Memo {
    seed: u64,
    max: usize,
    tokens: HashMap<Print, Token>,
    order: VecDeque<Print>,
}

impl Memo {
    /// For at most `max` tokens ([`MEMO_MAX`] in the program).
    pub fn new(max: usize) -> Self {
        let seed = getrandom::u64().expect("the kernel's random numbers are there from boot");
        Self { seed, max, tokens: HashMap::new(), order: VecDeque::new() }
    }

    /// What `stored` decrypted to.
    pub fn find(&self, stored: &str) -> Option<Token> {
        self.tokens.get(&self.print(stored)).cloned()
    }

    /// Remembers it. True if another one was forgotten for it.
    pub fn put(&mut self, stored: &str, token: Token) -> bool {
        if self.max == 0 {
            return false;
        }
        let print = self.print(stored);
        if self.tokens.insert(print, token).is_some() {
            return false;
        }
        self.order.push_back(print);
        if self.order.len() <= self.max {
            return false;
        }
        if let Some(oldest) = self.order.pop_front() {
            self.tokens.remove(&oldest);
        }
        true
    }

    /// Forgets all; the tokens are wiped.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.order.clear();
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    fn print(&self, stored: &str) -> Print {
        xxhash_rust::xxh3::xxh3_128_with_seed(stored.as_bytes(), self.seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(secret: &str) -> Keys {
        Keys::new(Some(&Secret::new(secret)), None)
    }

    /// Made with Python's `cryptography` by the recipe above.
    const STORED: &str = "\
        674141414141426c555f454141414543417751464267634943516f4c4441304f44775933644d53386755736f7735\
        52565f30667151376b384865747a45647557554f5071354f717133497578423168777a49534348455a57584f7369\
        396b3167647131485f4a3461384a527562786568586e7a423743733d";

    #[test]
    fn a_token_stored_by_the_python_recipe_is_read() {
        let token = keys("correct horse battery staple").read(STORED).expect("readable");
        assert_eq!(token.secret.reveal(), "EAAGm0PX4ZCpsBAO-example-token");
        assert_eq!(token.form, Form::Encrypted);
        let upper = keys("correct horse battery staple").read(&STORED.to_uppercase());
        assert_eq!(upper.map(|t| t.form), Ok(Form::Encrypted), "hex has no case");
    }

    #[test]
    fn what_is_encrypted_is_read_back_and_never_looks_the_same_twice() {
        let keys = keys("s");
        let token = Secret::new("EAAG123");
        let (one, two) = (keys.encrypt(&token).expect("key"), keys.encrypt(&token).expect("key"));
        assert_ne!(one, two);
        assert_eq!(keys.read(one.reveal()).map(|t| t.secret), Ok(token));
    }

    #[test]
    fn the_timestamp_of_a_stored_token_decides_nothing() {
        let keys = keys("s");
        for written_at in [0, 1_700_000_000, 32_503_680_000, u64::MAX] {
            let text = keys.current.as_ref().expect("key").encrypt_at_time(b"EAAG", written_at);
            let token = keys.read(&hex::encode(text)).expect("readable");
            assert_eq!(token.secret.reveal(), "EAAG", "written at {written_at}");
        }
    }

    #[test]
    fn a_wrong_secret_is_an_error_and_the_old_secret_is_tried() {
        assert_eq!(keys("other").read(STORED), Err(Unreadable::WrongSecret));
        let rotated =
            Keys::new(Some(&Secret::new("new")), Some(&Secret::new("correct horse battery staple")));
        assert_eq!(rotated.read(STORED).map(|t| t.form), Ok(Form::EncryptedOld));
        assert_eq!(Keys::new(None, None).read(STORED), Err(Unreadable::NoSecret));
        assert!(Keys::new(None, Some(&Secret::new("x"))).encrypt(&Secret::new("t")).is_none());
    }

    #[test]
    fn a_rotation_moves_what_the_old_secret_encrypted_and_nothing_else() {
        let (old, new) = (Secret::new("correct horse battery staple"), Secret::new("new"));
        let both = Keys::new(Some(&new), Some(&old));
        let Rotated::To(moved) = both.rotate(&Secret::new(STORED)) else { panic!("not rotated") };
        assert_eq!(both.rotate(&moved), Rotated::Current);
        assert_eq!(keys("new").read(moved.reveal()).map(|t| t.form), Ok(Form::Encrypted));
        assert_eq!(Keys::new(Some(&old), None).read(moved.reveal()), Err(Unreadable::WrongSecret));
        let others = keys("a third one").encrypt(&Secret::new("EAAG")).expect("key");
        assert_eq!(both.rotate(&others), Rotated::Unreadable);
        assert_eq!(both.rotate(&Secret::new("EAAG-plain")), Rotated::Plaintext);
        let long = Keys::new(Some(&old), None).encrypt(&Secret::new("x".repeat(3000))).expect("key");
        assert!(
            matches!(both.rotate(&long), Rotated::To(_)),
            "refresh tokens may be longer than what is sent"
        );
    }

    #[test]
    fn what_is_not_hex_or_is_short_is_a_plaintext_token() {
        let keys = keys("s");
        for plain in ["EAAGm0PX4ZCps", &"a".repeat(62), &"a".repeat(65), &format!("{}g", "a".repeat(80))] {
            let token = keys.read(plain).expect("plaintext");
            assert_eq!((token.form, token.secret.reveal()), (Form::Plaintext, plain));
        }
        assert_eq!(keys.read(&"a".repeat(64)), Err(Unreadable::WrongSecret));
    }

    #[test]
    fn blank_long_and_malformed_tokens_are_invalid_in_either_form() {
        let keys = keys("s");
        for (inside, why) in [
            ("  \n", Unreadable::Blank),
            (&*"x".repeat(401), Unreadable::TooLong),
            ("two\nlines", Unreadable::Malformed),
            ("na\u{ef}ve", Unreadable::Malformed),
        ] {
            let stored = keys.encrypt(&Secret::new(inside)).expect("key");
            assert_eq!(keys.read(stored.reveal()), Err(why), "encrypted {inside:?}");
            let plain = if why == Unreadable::Blank { Unreadable::Missing } else { why };
            assert_eq!(keys.read(inside), Err(plain), "plain {inside:?}");
        }
        let longest = keys.encrypt(&Secret::new("x".repeat(400))).expect("key");
        assert!(keys.read(longest.reveal()).is_ok());
        let trimmed = keys.encrypt(&Secret::new(" EAAG \n")).expect("key");
        assert_eq!(keys.read(trimmed.reveal()).map(|t| t.secret), Ok(Secret::new("EAAG")));
    }

    #[test]
    fn the_memo_forgets_the_oldest_and_can_be_cleared() {
        let token = |n: u32| Token { secret: Secret::new(format!("t{n}")), form: Form::Encrypted };
        let mut memo = Memo::new(3);
        for n in 0..3 {
            assert!(!memo.put(&n.to_string(), token(n)));
        }
        assert!(!memo.put("0", token(0)), "it was there");
        assert!(memo.put("3", token(3)));
        assert_eq!(memo.find("0"), None);
        assert_eq!(memo.find("1"), Some(token(1)));
        assert_eq!((memo.len(), memo.order.len()), (3, 3));
        memo.clear();
        assert!(memo.is_empty() && memo.find("1").is_none());
        assert!(!Memo::new(0).put("x", token(0)));
    }

    /// The vectors are given as (token, key); the hex and SHA-256 around them are ours.
    fn with_key(key: &str) -> Keys {
        Keys { current: Fernet::new(key), old: None }
    }

    #[test]
    fn fernet_vectors() {
        let Some(folder) = shared() else { return };
        let text = |name: &str| {
            let path = folder.join("vectors").join(name);
            std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        let read = |v: &serde_json::Value| {
            let token = v["token"].as_str().expect("token");
            with_key(v["secret"].as_str().expect("secret")).read(&hex::encode(token))
        };
        for name in ["fernet_verify.json", "fernet_generate.json"] {
            for v in serde_json::from_str::<Vec<serde_json::Value>>(&text(name)).expect(name) {
                assert_eq!(read(&v).expect(name).secret.reveal(), v["src"].as_str().expect("src"));
            }
        }
        let mut ageless = 0;
        for v in serde_json::from_str::<Vec<serde_json::Value>>(&text("fernet_invalid.json")).expect("json") {
            let desc = v["desc"].as_str().expect("desc");
            if desc.starts_with("far-future TS") || desc.starts_with("expired TTL") {
                ageless += 1;
                // decrypted; what is inside is empty
                assert_eq!(read(&v), Err(Unreadable::Blank), "{desc}");
            } else {
                assert_eq!(read(&v), Err(Unreadable::WrongSecret), "{desc}");
            }
        }
        assert_eq!(ageless, 2);
    }

    fn shared() -> Option<std::path::PathBuf> {
        let folder = std::env::var_os("WEBHOOK_SHARED").map_or_else(
            || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
            std::path::PathBuf::from,
        );
        if folder.is_dir() {
            return Some(folder);
        }
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{} is not there", folder.display());
        eprintln!("NOT RUN: the Fernet vectors are not in {}", folder.display());
        None
    }
}
