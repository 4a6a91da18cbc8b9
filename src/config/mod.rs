//! The environment as plain structs, one per module. Read once, from a lookup function; every mistake is named at
//! once and no value is ever printed.

mod dotenv;
pub mod mongodb;
pub mod read;
pub mod vars;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::secret::Secret;

/// Everything that `serve` needs.
#[derive(Clone, Debug)]
pub struct Config {
    /// WORKERS: threads that run the coroutines; 0: one per core.
    pub workers: usize,
    /// The HTTP edge.
    pub http: Http,
    /// Who may post, and the handshake.
    pub webhook: Webhook,
    /// The durable inbox.
    pub inbox: Inbox,
    /// The businesses.
    pub directory: Directory,
    /// Who answers.
    pub agent: Agent,
    /// The Graph API.
    pub graph: Graph,
    /// The turn and the drain.
    pub turn: Turn,
}

/// Settings of the edge.
#[derive(Clone, Debug)]
pub struct Http {
    /// LISTEN.
    pub listen: SocketAddr,
    /// MAX_CONNECTIONS: above it, new connections are closed at once.
    pub max_connections: usize,
    /// HEADER_TIMEOUT: from the first byte of a request to the end of its header.
    pub header_timeout: Duration,
    /// BODY_TIMEOUT: from the end of the header to the end of the body.
    pub body_timeout: Duration,
    /// IDLE_TIMEOUT: between two requests of a connection. Longer than nginx's keep-alive to its upstream (60 s).
    pub idle_timeout: Duration,
    /// ADMIN_TOKEN.
    pub admin_token: Option<Secret>,
    /// TRUSTED_PROXIES: whose X-Forwarded-For is believed.
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// RATE_LIMIT_*: requests per minute and address; 0 is no limit.
    pub rates: Rates,
}

/// Requests per minute and client address; 0 is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// RATE_LIMIT_HEALTH, default 100.
    pub health: u32,
    /// RATE_LIMIT_READY, default 100.
    pub ready: u32,
    /// RATE_LIMIT_METRICS, default 100.
    pub metrics: u32,
    /// RATE_LIMIT_ADMIN, default 10.
    pub admin: u32,
    /// RATE_LIMIT_UNVERIFIED, default 60: POSTs without a right signature and GET handshakes.
    pub unverified: u32,
    /// RATE_LIMIT_WEBHOOK, default 0: POSTs with a right signature.
    pub webhook: u32,
}

/// One Meta app: its secret signs what comes through it.
#[derive(Clone, Debug)]
pub struct App {
    /// `name` of `name=secret`; `None` for a bare secret.
    pub name: Option<String>,
    /// The app secret.
    pub secret: Secret,
}

/// Settings of verification.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// WHATSAPP_VERIFY_TOKEN: any of them.
    pub verify_tokens: Vec<Secret>,
    /// WHATSAPP_APP_SECRET.
    pub apps: Vec<App>,
    /// WHATSAPP_ALLOW_UNSIGNED.
    pub allow_unsigned: bool,
}

/// Settings of the inbox.
#[derive(Clone, Debug)]
pub struct Inbox {
    /// DATA_DIR: the folder of the embedded store.
    pub data_dir: PathBuf,
    /// INBOX_RETENTION.
    pub retention: Duration,
    /// COMMIT_PACE: how far apart commits are under load.
    pub commit_pace: Duration,
    /// CHECKPOINT_MIB, in bytes: how long the store's log gets.
    pub checkpoint_bytes: u64,
}

/// Settings of the directory.
#[derive(Clone, Debug)]
pub struct Directory {
    /// DATA_DIR: where the embedded store's businesses are.
    pub data_dir: PathBuf,
    /// ENCRYPTION_SECRET.
    pub encryption_secret: Option<Secret>,
    /// ENCRYPTION_SECRET_OLD.
    pub encryption_secret_old: Option<Secret>,
    /// BUSINESS_CACHE_TTL.
    pub cache_ttl: Duration,
    /// BUSINESS_CACHE_SIZE.
    pub cache_size: usize,
    /// WARMUP_CACHE.
    pub warmup: bool,
    /// WHATSAPP_PHONE_NUMBER_ID and WHATSAPP_TOKEN.
    pub fallback: Option<Fallback>,
    /// MONGODB_MAX_POOL_SIZE and MONGODB_MIN_POOL_SIZE, as /metrics shows them.
    pub pool: (usize, usize),
    /// Where the businesses are, if MONGODB_URI is set; else they are in the embedded store.
    pub mongodb: Option<mongodb::Mongodb>,
}

/// Credentials for one number that the directory doesn't know.
#[derive(Clone, Debug)]
pub struct Fallback {
    /// WHATSAPP_PHONE_NUMBER_ID.
    pub phone_number_id: String,
    /// WHATSAPP_TOKEN.
    pub token: Secret,
}

/// Which agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentKind {
    /// Says what it hears.
    Echo,
    /// Chat completions of any compatible server.
    OpenAi,
    /// The operator's own bot.
    Http,
}

/// Settings of the agent.
#[derive(Clone, Debug)]
pub struct Agent {
    /// AGENT.
    pub kind: AgentKind,
    /// AGENT_URL.
    pub url: Option<String>,
    /// AGENT_API_KEY.
    pub api_key: Option<Secret>,
    /// AGENT_MODEL.
    pub model: Option<String>,
    /// AGENT_PROMPT.
    pub prompt: Option<String>,
    /// AGENT_TIMEOUT.
    pub timeout: Duration,
    /// AGENT_ATTEMPTS, default 4: then the fallback text, or dead.
    pub attempts: u32,
    /// AGENT_FALLBACK_TEXT.
    pub fallback_text: Option<String>,
    /// AGENT_HISTORY, default 20: how many earlier messages of the conversation are remembered; 0: none.
    pub history: usize,
    /// AGENT_HISTORY_MAX_AGE, default 30 days: what was said before that is forgotten, within a day.
    pub history_max_age: Duration,
}

/// Settings of the Graph client.
#[derive(Clone, Debug)]
pub struct Graph {
    /// GRAPH_API_URL without a slash at the end.
    pub url: String,
    /// GRAPH_API_VERSION, like `v25.0`.
    pub version: String,
    /// GRAPH_TIMEOUT: a whole call.
    pub timeout: Duration,
    /// GRAPH_POOL_SIZE: connections kept alive.
    pub pool_size: usize,
    /// GRAPH_RATE, default 80: messages per second and number.
    pub rate_per_number: u32,
}

/// Settings of the turn.
#[derive(Clone, Debug)]
pub struct Turn {
    /// REPLY_MAX_AGE.
    pub reply_max_age: Duration,
    /// DRAIN_TIMEOUT.
    pub drain_timeout: Duration,
    /// SEND_SETTLE, default 60 s: how long a send of unknown outcome waits for the status webhook that names it.
    pub send_settle: Duration,
    /// MAX_TURNS: turns under way at once, over all businesses. Default 12,000; 400 with the echo agent.
    pub max_turns: usize,
}
