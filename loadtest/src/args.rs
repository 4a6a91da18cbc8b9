//! What can be asked for, and what is refused because it makes no sense.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::{mongodb, peers};

/// Descriptors that are needed besides one for each user: the store, the simulated Graph's connections, ..
const FDS_SPARE: u64 = 600;
/// The longest run, in seconds: times are kept in 32 bits of 10 us.
const DURATION_MAX: u64 = 6 * 3600;
/// Conversations: how many pairs the server paces.
const CONVERSATIONS_MAX: u64 = 100_000;
/// Messages that a conversation shall have at most, so that the limit of a pair (45 in a burst, then one in 6 s) is not
/// what is measured.
const MESSAGES_PER_CONVERSATION: u64 = 30;
/// What a closed loop is taken to reach a second, to choose the number of conversations.
const GUESS_PER_SECOND: u64 = 20_000;
/// Updates in one POST, as Meta bounds them.
const BATCH_MAX: u64 = 1000;
/// The largest flood; a conversation each.
const FLOOD_MAX: u64 = 50_000;
/// The most large bodies a second: a connection takes one after the other.
const LARGE_BODIES_MAX: u64 = 5;
/// The highest rate, messages a second.
const RATE_MAX: u64 = 1_000_000;
/// The agent's longest time, in ms: below the server's AGENT_TIMEOUT.
const AGENT_DELAY_MAX: u64 = 50_000;

/// Signed load on a real server, with the Graph API simulated; every message is followed by its id to its answer.
///
/// Exit codes: 0 all as it should be; 1 a line is red; 64 options that make no sense; 130 interrupted.
#[derive(Clone, Debug, Parser)]
#[command(name = "loadtest", version, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// What is no run; see its own --help
    #[command(subcommand)]
    pub command: Option<Special>,
    /// Keep-alive connections, each posting one request after the other
    #[arg(long, default_value_t = 500)]
    pub users: u64,
    /// Seconds of load; after it the server answers what it acknowledged
    #[arg(long, default_value_t = 30)]
    pub duration: u64,
    /// Open loop: messages a second over all users, latencies counted from the intended time; without it a closed
    /// loop, each user as fast as the server answers
    #[arg(long)]
    pub rate: Option<u64>,
    /// Conversations, spread over users and businesses; by default so many that no pair limit is met
    #[arg(long)]
    pub conversations: Option<u64>,
    /// Businesses, each with its own number and token
    #[arg(long, default_value_t = 20)]
    pub businesses: u64,
    /// Of 100 requests, how many are posted a second time
    #[arg(long, default_value_t = 0)]
    pub duplicates: u64,
    /// Messages in one request, of different businesses
    #[arg(long, default_value_t = 1)]
    pub batch: u64,
    /// Delivery statuses instead of messages: nothing is answered, the 200 alone is measured
    #[arg(long, visible_alias = "ack-only")]
    pub statuses: bool,
    /// The simulated Graph also posts sent, delivered and read for every reply, as Meta does
    #[arg(long)]
    pub receipts: bool,
    /// Answer through a simulated agent of the operator's own (AGENT=http) that takes so many ms, instead of the echo
    #[arg(long, value_name = "MS")]
    pub agent_delay: Option<u64>,
    /// Of 100 sends to Graph, how many go wrong: a pair's limit, an HTML page with 500, accepted but answered with a
    /// reset, a 500 or half an answer, late; implies --receipts, since statuses settle what became of them
    #[arg(long, default_value_t = 0)]
    pub faults: u64,
    /// Beside the load, three times, so many messages at once to one business, each of another customer: what the others
    /// notice of it is told. A number answers at most 1,000 a second then, Meta's highest level (another: --env GRAPH_RATE=)
    #[arg(long, value_name = "MESSAGES")]
    pub flood: Option<u64>,
    /// Beside the load, so many bodies of 3 MB a second, the largest that Meta sends: what the others notice is told
    #[arg(long, value_name = "A SECOND")]
    pub large_bodies: Option<u64>,
    /// Businesses in a MongoDB: the one of this URI (they are left there), of LOADTEST_MONGODB_URI, or a FerretDB that is
    /// built and started from tests/ferretdb; prints the cache's hit rate and the queries a message
    #[arg(long, value_name = "URI", num_args = 0..=1, default_missing_value = "")]
    pub mongodb: Option<String>,
    /// Repeats the ids and the dice of an earlier run; by default another each time
    #[arg(long)]
    pub seed: Option<u32>,
    /// Where the report is written: report.html and report.json; by default target/loadtest
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// A report.json of before: prints ratios to it, and the noise; may be repeated
    #[arg(long, value_name = "FILE")]
    pub compare: Vec<PathBuf>,
    /// Red below this many 200s a second
    #[arg(long)]
    pub min_rate: Option<u64>,
    /// Red if the 99th percentile of the time to the 200 is above this, in ms
    #[arg(long)]
    pub max_p99: Option<u64>,
    /// Red if the 99th percentile of the time to the answer is above this, in ms
    #[arg(long)]
    pub max_answer_p99: Option<u64>,
    /// Red if the 99th percentile of the others' time to the answer beside a flood is more than so many times what it is
    /// without one
    #[arg(long, value_name = "TIMES")]
    pub max_flood_ratio: Option<f64>,
    /// Red if the 99th percentile of the others' time to the 200 beside large bodies is above this, in ms, where the
    /// machine did not stall
    #[arg(long, value_name = "MS")]
    pub max_large_p99: Option<u64>,
    /// Red if the server was ever larger than this, in MiB resident
    #[arg(long)]
    pub max_rss: Option<u64>,
    /// Seconds without any answer after which the drain is given up
    #[arg(long, default_value_t = 30)]
    pub patience: u64,
    /// The server's executable; by default the one beside this program, built first if need be
    #[arg(long, env = "LOADTEST_SERVER")]
    pub server: Option<PathBuf>,
    /// A folder on a real disk for the server's data; by default beside this program; removed at the end
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// A setting for the server, NAME=VALUE; may be repeated
    #[arg(long = "env", value_name = "NAME=VALUE")]
    pub settings: Vec<String>,
}

/// What is no run.
#[derive(Clone, Debug, Subcommand)]
pub enum Special {
    /// The simulated Meta of a run, as a process of its own
    #[command(hide = true)]
    SimulatedMeta {
        /// JSON
        behaviour: String,
    },
    /// Other servers under the same load, in turn: medians and ratios
    Compare(peers::Args),
}

impl Args {
    /// Whether statuses follow each reply.
    pub fn has_receipts(&self) -> bool {
        self.receipts || self.faults > 0
    }

    /// How many conversations there are.
    pub fn conversations(&self) -> u64 {
        self.conversations.unwrap_or_else(|| {
            // a closed loop is as fast with ten messages in a request as with one
            let guess = GUESS_PER_SECOND * self.batch.clamp(1, 10);
            let messages = self.rate.unwrap_or(guess).saturating_mul(self.duration);
            let enough = messages.div_ceil(MESSAGES_PER_CONVERSATION).max(self.users).max(self.businesses);
            let enough = enough.min(CONVERSATIONS_MAX);
            // whole rounds: every user has as many as the next
            enough.div_ceil(self.users.max(1)).max(1) * self.users
        })
    }

    /// Everything that makes no sense. `open_files_max`: what one process may open.
    pub fn faults(&self, open_files_max: u64) -> Vec<String> {
        let mut faults = self.faults_of_size(open_files_max);
        let mut refuse = |is_bad: bool, why: &str| {
            if is_bad {
                faults.push(why.to_owned());
            }
        };
        let has_answers =
            self.receipts || self.faults > 0 || self.agent_delay.is_some() || self.max_answer_p99.is_some();
        refuse(
            self.statuses && has_answers,
            "--statuses: nothing is answered, so --receipts, --faults, --agent-delay and --max-answer-p99 have no \
             meaning; leave them or --statuses out",
        );
        refuse(
            self.statuses && self.mongodb.is_some(),
            "--mongodb: with --statuses no business is looked up; leave one of them out",
        );
        refuse(
            self.flood.is_some() && (self.statuses || self.businesses < 2),
            "--flood: what the others notice is their time to the answer; leave --statuses out, and take 2 or more \
             --businesses",
        );
        refuse(
            self.flood.is_some_and(|flood| !(1..=FLOOD_MAX).contains(&flood)),
            &format!("--flood: must be 1 to {FLOOD_MAX} messages"),
        );
        refuse(
            self.max_flood_ratio
                .is_some_and(|most| self.flood.is_none() || !(most > 0.0 && most.is_finite())),
            "--max-flood-ratio: must be a number above 0, and needs --flood",
        );
        refuse(
            self.large_bodies.is_some_and(|a_second| !(1..=LARGE_BODIES_MAX).contains(&a_second)),
            &format!("--large-bodies: must be 1 to {LARGE_BODIES_MAX} a second"),
        );
        refuse(
            self.max_large_p99.is_some() && self.large_bodies.is_none(),
            "--max-large-p99: needs --large-bodies",
        );
        refuse(self.duplicates > 100, "--duplicates: it is a share of 100 requests; take 0 to 100");
        refuse(
            self.faults > 50,
            "--faults: of 100 sends at most 50 may go wrong, or nothing is measured but retries; take 0 to 50",
        );
        refuse(
            self.agent_delay.is_some_and(|ms| ms > AGENT_DELAY_MAX),
            &format!("--agent-delay: above {AGENT_DELAY_MAX} ms the server gives its agent up; take less"),
        );
        refuse(
            self.mongodb.as_deref().is_some_and(|uri| !uri.is_empty() && !mongodb::is_uri(uri)),
            "--mongodb: must be followed by a URI that begins with mongodb:// or mongodb+srv://, or by none",
        );
        refuse(self.patience == 0, "--patience 0: no drain can be waited for; take 1 or more seconds");
        for setting in &self.settings {
            let name = setting.split_once('=').map(|(name, _)| name).filter(|name| !name.is_empty());
            refuse(name.is_none(), "--env: must be NAME=VALUE");
        }
        faults
    }

    fn faults_of_size(&self, open_files_max: u64) -> Vec<String> {
        let Self { users, duration, businesses, batch, .. } = *self;
        let mut faults = Vec::new();
        let mut refuse = |is_bad: bool, why: String| {
            if is_bad {
                faults.push(why);
            }
        };
        refuse(users == 0, "--users 0: nobody would post; take 1 or more".to_owned());
        refuse(
            users > CONVERSATIONS_MAX,
            format!("--users {users}: must be at most {CONVERSATIONS_MAX}, one conversation each"),
        );
        refuse(
            users.saturating_add(FDS_SPARE) > open_files_max,
            format!(
                "--users {users}: each needs a descriptor, and {FDS_SPARE} more are needed, but `ulimit -n` is \
                 {open_files_max}; set it to {} or take at most {} users",
                users.saturating_add(FDS_SPARE),
                open_files_max.saturating_sub(FDS_SPARE)
            ),
        );
        refuse(
            !(1..=DURATION_MAX).contains(&duration),
            format!("--duration {duration}: must be 1 to {DURATION_MAX} seconds"),
        );
        let rate = rate_fault(self.rate);
        refuse(rate.is_some(), rate.unwrap_or_default());
        refuse(
            self.rate.is_some_and(|rate| rate > 0 && rate.saturating_mul(duration) < batch),
            format!(
                "--batch {batch}: at this --rate not one request would be due in --duration {duration} s; raise --rate \
                 or --duration"
            ),
        );
        refuse(!(1..=10_000).contains(&businesses), format!("--businesses {businesses}: must be 1 to 10000"));
        refuse(
            !(1..=BATCH_MAX).contains(&batch),
            format!("--batch {batch}: Meta puts 1 to {BATCH_MAX} into a request"),
        );
        refuse(
            self.conversations.is_some_and(|given| given < users || given > CONVERSATIONS_MAX),
            format!(
                "--conversations {}: must be at least one for each of {users} users, at most {CONVERSATIONS_MAX}",
                self.conversations()
            ),
        );
        faults
    }
}

/// Why this rate makes no sense, if so.
pub fn rate_fault(rate: Option<u64>) -> Option<String> {
    match rate? {
        0 => Some("--rate 0: nothing would be posted; leave it out for a closed loop".to_owned()),
        1..=RATE_MAX => None,
        _ => {
            Some(format!("--rate: above {RATE_MAX} a second nothing is measured but this program; take less"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(arguments: &[&str]) -> Vec<String> {
        let all = std::iter::once(&"loadtest").chain(arguments);
        Args::try_parse_from(all).expect("parses").faults(20_000)
    }

    #[test]
    fn the_defaults_make_sense() {
        assert_eq!(faults(&[]), Vec::<String>::new());
        assert_eq!(faults(&["--rate", "1000", "--duplicates", "10", "--batch", "5"]), Vec::<String>::new());
    }

    #[test]
    fn each_option_that_makes_no_sense_is_named() {
        for bad in [
            &["--users", "0"][..],
            &["--users", "19500"],
            &["--duration", "0"],
            &["--rate", "0"],
            &["--businesses", "0"],
            &["--duplicates", "101"],
            &["--batch", "0"],
            &["--batch", "1001"],
            &["--conversations", "3"],
            &["--statuses", "--receipts"],
            &["--statuses", "--faults", "5"],
            &["--faults", "51"],
            &["--agent-delay", "60000"],
            &["--batch", "100", "--rate", "1", "--duration", "5"],
            &["--mongodb", "localhost"],
            &["--mongodb", "--statuses"],
            &["--patience", "0"],
            &["--flood", "0"],
            &["--flood", "50001"],
            &["--flood", "10", "--statuses"],
            &["--flood", "10", "--businesses", "1"],
            &["--max-flood-ratio", "2"],
            &["--large-bodies", "0"],
            &["--large-bodies", "6"],
            &["--max-large-p99", "20"],
            &["--max-flood-ratio", "0", "--flood", "10"],
            &["--env", "X"],
        ] {
            let faults = faults(bad);
            assert!(faults.iter().any(|f| f.starts_with(bad[0])), "{bad:?}: {faults:?}");
        }
    }

    #[test]
    fn conversations_are_enough_and_even() {
        let args = Args::try_parse_from(["loadtest", "--rate", "1000", "--duration", "60"]).expect("parses");
        assert_eq!(args.conversations(), 2000);
        let args = Args::try_parse_from(["loadtest", "--users", "700", "--rate", "1000"]).expect("parses");
        assert_eq!(args.conversations(), 1400);
        let args = Args::try_parse_from(["loadtest", "--users", "7", "--rate", "1", "--businesses", "3"])
            .expect("parses");
        assert_eq!(args.conversations(), 7);
        let args = Args::try_parse_from(["loadtest", "--businesses", "1100", "--rate", "1"]).expect("parses");
        assert_eq!(args.conversations(), 1500, "each business has one");
        assert_eq!(args.conversations() % args.users, 0);
    }
}
