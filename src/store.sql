-- One file for everything that must outlive the process. An operator may open it with sqlite3 (read only, please).

-- One row a group commit: the bodies end to end, as they were signed; compressed where they are many or large.
CREATE TABLE commits (
    id INTEGER PRIMARY KEY,
    received_ms INTEGER NOT NULL,
    -- per body: length (u32), app (u64), little endian; before that the frames, if bodies are compressed (src/inbox/frames.rs)
    bounds BLOB NOT NULL,
    bodies BLOB NOT NULL
) STRICT;

-- One row an item, derived from the bodies. The key is also the duplicate check; it grows at its end.
CREATE TABLE items (
    timestamp INTEGER NOT NULL,
    key INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    state INTEGER NOT NULL,
    number INTEGER NOT NULL,
    conversation INTEGER NOT NULL,
    commit_id INTEGER NOT NULL,
    body INTEGER NOT NULL,
    entry INTEGER NOT NULL,
    change INTEGER NOT NULL,
    nth INTEGER NOT NULL,
    turn INTEGER,
    reason TEXT,
    detail TEXT,
    PRIMARY KEY (timestamp, key)
) STRICT, WITHOUT ROWID;

-- Only what waits (pending, parked): small, however large the table is.
CREATE INDEX items_open ON items (number, commit_id, body, entry, change, nth, state) WHERE state < 2;
CREATE INDEX items_dead ON items (commit_id) WHERE state = 5;

CREATE TABLE turns (
    id INTEGER PRIMARY KEY,
    state INTEGER NOT NULL,
    number INTEGER NOT NULL,
    conversation INTEGER NOT NULL,
    phone_number_id TEXT NOT NULL,
    recipient_kind INTEGER NOT NULL,
    recipient TEXT NOT NULL,
    session TEXT NOT NULL,
    stored_ms INTEGER NOT NULL,
    -- per item: timestamp (u64), key (u64), little endian
    items BLOB NOT NULL
) STRICT;
CREATE INDEX turns_open ON turns (id) WHERE state = 0;

CREATE TABLE replies (
    turn INTEGER NOT NULL,
    nth INTEGER NOT NULL,
    state INTEGER NOT NULL,
    body TEXT NOT NULL,
    wamid TEXT,
    reason TEXT,
    detail TEXT,
    settled_ms INTEGER,
    PRIMARY KEY (turn, nth)
) STRICT, WITHOUT ROWID;

CREATE TABLE memory (
    session TEXT NOT NULL,
    seq INTEGER NOT NULL,
    role INTEGER NOT NULL,
    content TEXT NOT NULL,
    said_ms INTEGER NOT NULL,
    PRIMARY KEY (session, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE businesses (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    sub_domain TEXT NOT NULL UNIQUE,
    waba_id TEXT NOT NULL,
    -- the document's whatsappAccessToken, whatsappRefreshToken as stored: hex of the Fernet token
    access_token TEXT,
    refresh_token TEXT,
    token_expires_at TEXT,
    enabled INTEGER NOT NULL,
    active INTEGER NOT NULL,
    meta_app TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE business_numbers (
    phone_number_id TEXT NOT NULL,
    business TEXT NOT NULL REFERENCES businesses (id) ON DELETE CASCADE,
    PRIMARY KEY (phone_number_id, business)
) STRICT, WITHOUT ROWID;
CREATE INDEX business_numbers_of ON business_numbers (business);

CREATE TABLE meta (name TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID;
