//! `business add|list|show|remove|import|export`: the directory, in whichever store is configured, beside the
//! running service or without it.
//!
//! Tokens come in on standard input and never go out: `list` and `show` tell the state of a token only.
//! `export` writes them as stored. `add` names everything that is wrong at once; `import` takes all lines or
//! none.

mod lines;

use std::io::{self, IsTerminal, Read, Write};

use clap::{Args, Subcommand};

use super::Failed;
use crate::directory::judge::FALLBACK_SUB_DOMAIN;
use crate::directory::store::{NUMBERS_MAX, Record, Store, all};
use crate::directory::tokens::{self, Form, Keys, TOKEN_MAX, Unreadable};
use crate::secret::Secret;
use crate::{config, directory};

/// The longest subdomain, in characters: that of a DNS label.
const SUB_DOMAIN_MAX: usize = 63;
/// The longest name of a business or an app, in characters.
const NAME_MAX: usize = 200;
/// The longest phone_number_id or WABA id, in digits; Meta's have about 15.
const ID_MAX: usize = 32;
/// What is read of standard input for a token, in bytes.
const TOKEN_INPUT_MAX: u64 = 64 << 10;

/// The `business` command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Add a business, or update the one of that subdomain; the access token is read from standard input
    Add(Add),
    /// List all businesses, tokens masked
    List,
    /// Show one business, tokens masked
    Show {
        /// Its subdomain
        sub_domain: String,
    },
    /// Remove a business; its numbers are answered no longer
    Remove {
        /// Its subdomain
        sub_domain: String,
    },
    /// Read businesses from standard input, JSON lines as `export` or mongoexport writes them: all or none
    Import,
    /// Write all businesses to standard output as JSON lines, tokens as stored
    Export,
}

/// Options of `business add`. For an update, what is not given stays.
#[derive(Args, Debug, Default)]
pub struct Add {
    /// The name shown to operators and agents
    #[arg(long)]
    pub name: Option<String>,
    /// The subdomain: what the business is called by; 1 to 63 of letters, digits, `-`, `_`, `.`
    #[arg(long)]
    pub subdomain: String,
    /// The phone number id at Meta (digits; not the number itself), or several; replaces those that are there
    #[arg(long = "phone-number-id", value_delimiter = ',')]
    pub phone_number_ids: Vec<String>,
    /// The WhatsApp business account id at Meta (digits)
    #[arg(long)]
    pub waba_id: Option<String>,
    /// Only what comes through this Meta app is answered (a name in WHATSAPP_APP_SECRET); empty: through any
    #[arg(long)]
    pub app: Option<String>,
    /// Stop answering its numbers
    #[arg(long, conflicts_with = "enable")]
    pub disable: bool,
    /// Answer its numbers again
    #[arg(long)]
    pub enable: bool,
    /// Update without reading a token from standard input
    #[arg(long)]
    pub keep_token: bool,
}

/// Standard input for `command`: a terminal is asked for the token, without echo.
pub fn input(command: &Command) -> Box<dyn Read> {
    match command {
        Command::Add(add) if !add.keep_token && io::stdin().is_terminal() => Box::new(Prompt(None)),
        _ => Box::new(io::stdin().lock()),
    }
}

/// Asks at the first read.
struct Prompt(Option<io::Cursor<zeroize::Zeroizing<Vec<u8>>>>);

impl Read for Prompt {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_none() {
            let token = rpassword::prompt_password("Access token: ")?;
            self.0 = Some(io::Cursor::new(zeroize::Zeroizing::new(token.into_bytes())));
        }
        let Some(cursor) = &mut self.0 else { return Ok(0) };
        let position = cursor.position() as usize;
        let read = cursor.get_ref().get(position..).unwrap_or_default().read(buffer)?;
        cursor.set_position((position + read) as u64);
        Ok(read)
    }
}

/// Runs it. The error is for standard error, one fault a line, without a token; nothing was changed then.
pub fn run(
    command: Command,
    config: &config::Directory,
    out: &mut dyn Write,
    input: &mut dyn Read,
) -> Result<(), Failed> {
    let store = directory::store(config).map_err(|e| e.to_string())?;
    let store = &*store;
    let text = match command {
        Command::Add(add) => run_add(add, config, store, input)?,
        Command::List => list(config, store)?,
        Command::Show { sub_domain } => show(config, store, &sub_domain)?,
        Command::Remove { sub_domain } => remove(store, &sub_domain)?,
        Command::Import => lines::import(store, input)?,
        Command::Export => return Ok(lines::export(store, out)?),
    };
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    Ok(written.map_err(|e| format!("standard output: {e}"))?)
}

fn run_add(
    add: Add,
    config: &config::Directory,
    store: &dyn Store,
    input: &mut dyn Read,
) -> Result<String, Failed> {
    let keys = Keys::new(config.encryption_secret.as_ref(), None);
    // of the use: in what was typed or is set; the others are in what was piped in or is stored
    let (mut of_use, mut faults) = (Vec::new(), Vec::new());
    if config.encryption_secret.is_none() && !add.keep_token {
        of_use.push("ENCRYPTION_SECRET is not set: the token can't be encrypted".to_owned());
    }
    let known = one(store, &add.subdomain)?;
    let token = match (add.keep_token, &known) {
        (true, Some(_)) => None,
        (true, None) => {
            of_use.push(format!("--keep-token: there is no business {:?} yet", add.subdomain));
            None
        }
        (false, _) => read_token(input).map_err(|fault| faults.push(fault)).ok(),
    };
    let is_new = known.is_none();
    if is_new {
        let missing = [
            ("--name", add.name.is_none()),
            ("--phone-number-id", add.phone_number_ids.is_empty()),
            ("--waba-id", add.waba_id.is_none()),
        ];
        let missing = missing.iter().filter(|(_, is_missing)| *is_missing);
        of_use.extend(missing.map(|(option, _)| format!("{option} is required for a new business")));
    }
    // what others stored may stay as it is; what is given here is checked
    let before = known.as_ref().map_or_else(Vec::new, check);
    let mut record = changed(known.unwrap_or_else(|| Record::new(&*add.subdomain)), add);
    of_use.extend(check(&record).into_iter().filter(|fault| !before.contains(fault)));
    if of_use.is_empty() && faults.is_empty() {
        record.access_token = match token {
            Some(token) => {
                Some(keys.encrypt(&token).ok_or_else(|| "ENCRYPTION_SECRET is not set".to_owned())?)
            }
            None => record.access_token,
        };
    }
    if record.is_live() {
        faults.extend(taken(store, &record)?);
    }
    let is_misused = !of_use.is_empty();
    of_use.append(&mut faults);
    if !of_use.is_empty() {
        let all = of_use.join("\n");
        return Err(if is_misused { Failed::Usage(all) } else { Failed::Other(all) });
    }
    let line = format!(
        "{} {}: {}, {}\n",
        if is_new { "added" } else { "updated" },
        record.sub_domain,
        numbers(&record),
        state(&record)
    );
    store.upsert(vec![record]).map_err(|e| e.to_string())?;
    Ok(line)
}

fn changed(mut record: Record, add: Add) -> Record {
    if let Some(name) = add.name {
        record.name = name;
    }
    if !add.phone_number_ids.is_empty() {
        record.phone_number_ids = add.phone_number_ids;
        record.phone_number_ids.sort();
        record.phone_number_ids.dedup();
    }
    if let Some(waba_id) = add.waba_id {
        record.waba_id = waba_id;
    }
    if let Some(app) = add.app {
        record.meta_app = Some(app).filter(|app| !app.is_empty());
    }
    if add.enable {
        (record.enabled, record.active) = (true, true);
    }
    if add.disable {
        record.enabled = false;
    }
    record
}

/// One fault for each live business that has one of the numbers.
fn taken(store: &dyn Store, record: &Record) -> Result<Vec<String>, String> {
    let mut faults = Vec::new();
    for number in record.phone_number_ids.iter().filter(|number| is_id(number)) {
        for other in store.by_number(number).map_err(|e| e.to_string())? {
            if other.is_live() && other.sub_domain != record.sub_domain {
                faults.push(format!(
                    "phone_number_id {number} belongs to business {:?} already",
                    other.sub_domain
                ));
            }
        }
    }
    Ok(faults)
}

/// The token on standard input.
fn read_token(input: &mut dyn Read) -> Result<Secret, String> {
    let mut bytes = zeroize::Zeroizing::new(Vec::new());
    input.take(TOKEN_INPUT_MAX).read_to_end(&mut bytes).map_err(|e| format!("standard input: {e}"))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| "standard input: the token is not text".to_owned())?;
    tokens::check(text).map_err(|why| match why {
        Unreadable::TooLong => format!("standard input: a token has at most {TOKEN_MAX} characters"),
        Unreadable::Malformed => {
            "standard input: a token has no white space, control or non-ASCII characters inside".to_owned()
        }
        _ => "standard input: no token; pipe it in (`business add .. < token.txt`), or say --keep-token to \
              leave the stored one"
            .to_owned(),
    })
}

/// Everything that is wrong with the record itself.
fn check(record: &Record) -> Vec<String> {
    let mut faults = Vec::new();
    if !is_sub_domain(&record.sub_domain) {
        faults.push(format!(
            "subdomain {:?}: 1 to {SUB_DOMAIN_MAX} of letters, digits, `-`, `_`, `.`; first and last no sign",
            shortened(&record.sub_domain)
        ));
    } else if record.sub_domain == FALLBACK_SUB_DOMAIN {
        faults.push(format!("subdomain {FALLBACK_SUB_DOMAIN:?} is that of the fallback credentials"));
    }
    if !is_name(&record.name) {
        faults.push(format!("name: 1 to {NAME_MAX} characters, no control characters"));
    }
    if record.meta_app.as_ref().is_some_and(|app| !is_name(app) || app.contains(['=', ','])) {
        faults.push(format!("app: a name of WHATSAPP_APP_SECRET, at most {NAME_MAX} characters"));
    }
    if !record.waba_id.is_empty() && !is_id(&record.waba_id) {
        faults.push(format!("waba-id {:?}: 1 to {ID_MAX} digits", shortened(&record.waba_id)));
    }
    if record.phone_number_ids.len() > NUMBERS_MAX {
        faults.push(format!("phone-number-id: at most {NUMBERS_MAX} for a business"));
    }
    for number in record.phone_number_ids.iter().filter(|number| !is_id(number)).take(10) {
        faults.push(format!(
            "phone-number-id {:?}: 1 to {ID_MAX} digits, Meta's id of the number and not the number itself",
            shortened(number)
        ));
    }
    faults
}

/// A DNS label in form, but also `_`, `.` and capital letters, which others' documents may have. No `:`,
/// which divides the session key.
fn is_sub_domain(text: &str) -> bool {
    let is_inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let ends = [text.bytes().next(), text.bytes().last()];
    text.len() <= SUB_DOMAIN_MAX
        && text.bytes().all(is_inner)
        && ends.iter().all(|end| end.is_some_and(|b| b.is_ascii_alphanumeric()))
}

fn is_name(text: &str) -> bool {
    !text.trim().is_empty() && text.chars().count() <= NAME_MAX && !text.chars().any(char::is_control)
}

fn is_id(text: &str) -> bool {
    (1..=ID_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
}

/// A wrong value may be a token in the wrong place: only its beginning is shown.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 12;
    let mut shown: String = text.chars().take(SHOWN).collect();
    if text.chars().count() > SHOWN {
        shown.push('…');
    }
    shown
}

fn one(store: &dyn Store, sub_domain: &str) -> Result<Option<Record>, String> {
    let mut records = store.by_subdomain(sub_domain).map_err(|e| e.to_string())?;
    if records.len() > 1 {
        return Err(format!("the store has {} businesses with the subdomain {sub_domain:?}", records.len()));
    }
    Ok(records.pop())
}

fn list(config: &config::Directory, store: &dyn Store) -> Result<String, String> {
    let mut records = Vec::new();
    all(store, |record| {
        records.push(record);
        true
    })
    .map_err(|e| e.to_string())?;
    records.sort_by(|a, b| a.sub_domain.cmp(&b.sub_domain));
    let keys = reading_keys(config);
    let rows = records.iter().map(|record| {
        let token = token_state(&keys, record.access_token.as_ref());
        let texts = [&record.sub_domain, state(record), &token, &numbers(record), &record.name];
        texts.map(printable)
    });
    let head = ["SUBDOMAIN", "STATE", "TOKEN", "PHONE NUMBER IDS", "NAME"].map(str::to_owned);
    let rows: Vec<[String; 5]> = std::iter::once(head).chain(rows).collect();
    let widths = [0, 1, 2, 3].map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for [sub_domain, state, token, numbers, name] in rows {
        let [w0, w1, w2, w3] = widths;
        text += &format!("{sub_domain:w0$}  {state:w1$}  {token:w2$}  {numbers:w3$}  {name}\n");
    }
    Ok(text)
}

fn show(config: &config::Directory, store: &dyn Store, sub_domain: &str) -> Result<String, String> {
    let record = one(store, sub_domain)?.ok_or_else(|| format!("there is no business {sub_domain:?}"))?;
    let keys = reading_keys(config);
    let lines = [
        ("id", record.id.clone()),
        ("name", printable(&record.name)),
        ("subDomain", record.sub_domain.clone()),
        ("wabaId", record.waba_id.clone()),
        ("whatsappPhoneNumberIds", numbers(&record)),
        ("whatsappAccessToken", token_state(&keys, record.access_token.as_ref())),
        ("whatsappRefreshToken", token_state(&keys, record.refresh_token.as_ref())),
        ("whatsappTokenExpiresAt", record.token_expires_at.clone().unwrap_or_else(|| "none".to_owned())),
        ("whatsappEnabled", record.enabled.to_string()),
        ("isActive", record.active.to_string()),
        ("metaApp", record.meta_app.clone().unwrap_or_else(|| "any".to_owned())),
    ];
    let fault = record.fault.as_ref().map(|fault| ("invalid", fault.clone()));
    let lines = lines.into_iter().chain(fault);
    Ok(lines.map(|(name, value)| format!("{name:24}{}\n", printable(&value))).collect())
}

fn remove(store: &dyn Store, sub_domain: &str) -> Result<String, String> {
    if store.remove(sub_domain).map_err(|e| e.to_string())? {
        Ok(format!("removed {sub_domain}\n"))
    } else {
        Err(format!("there is no business {sub_domain:?}"))
    }
}

fn reading_keys(config: &config::Directory) -> Keys {
    Keys::new(config.encryption_secret.as_ref(), config.encryption_secret_old.as_ref())
}

/// Never the value.
fn token_state(keys: &Keys, stored: Option<&Secret>) -> String {
    match keys.read(stored.map_or("", Secret::reveal)) {
        Ok(token) => match token.form {
            Form::Encrypted => "encrypted",
            Form::EncryptedOld => "encrypted with ENCRYPTION_SECRET_OLD",
            Form::Plaintext => "plaintext",
        },
        Err(Unreadable::Missing) => "none",
        Err(Unreadable::NoSecret) => "encrypted (ENCRYPTION_SECRET is not set)",
        Err(Unreadable::WrongSecret) => "unreadable with this ENCRYPTION_SECRET",
        Err(Unreadable::Blank | Unreadable::TooLong | Unreadable::Malformed) => "invalid",
    }
    .to_owned()
}

fn state(record: &Record) -> &'static str {
    if record.fault.is_some() {
        return "invalid";
    }
    match (record.enabled, record.active) {
        (true, true) => "enabled",
        (false, _) => "disabled",
        (true, false) => "inactive",
    }
}

fn numbers(record: &Record) -> String {
    if record.phone_number_ids.is_empty() {
        return "no number".to_owned();
    }
    record.phone_number_ids.join(",")
}

/// Others write to the store too: no control character of theirs reaches the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
