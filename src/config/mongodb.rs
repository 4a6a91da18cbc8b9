//! MONGODB_URI and its database: what is wrong with them is found without asking any server, and told without
//! showing a part of the URI, since it holds a password.

use mongodb::options::ConnectionString;

use super::vars::Vars;
use crate::secret::Secret;

/// The longest name of a database, in bytes.
/// Source: <https://www.mongodb.com/docs/manual/reference/limits/#mongodb-limit-Length-of-Database-Names>.
const DATABASE_MAX: usize = 63;
/// Source: <https://www.mongodb.com/docs/manual/reference/limits/#naming-restrictions>.
const DATABASE_REFUSES: [char; 7] = ['/', '\\', '.', ' ', '"', '$', '\0'];

/// Options that other drivers know and this one refuses, without a meaning for security: left out.
const DROPPED: [&str; 13] = [
    "sockettimeoutms",
    "timeoutms",
    "compressors",
    "zlibcompressionlevel",
    "waitqueuemultiple",
    "connect",
    "tz_aware",
    "document_class",
    "unicode_decode_error_handler",
    "datetime_conversion",
    "fsync",
    "tlsdisableocspendpointcheck",
    "uuidrepresentation",
];

/// Options that may be named in a message; any other word there may be a part of a password.
const NAMED: [&str; 35] = [
    "appname",
    "authmechanism",
    "authmechanismproperties",
    "authsource",
    "connecttimeoutms",
    "directconnection",
    "heartbeatfrequencyms",
    "journal",
    "loadbalanced",
    "localthresholdms",
    "maxconnecting",
    "maxidletimems",
    "maxpoolsize",
    "maxstalenessseconds",
    "minpoolsize",
    "readconcernlevel",
    "readpreference",
    "readpreferencetags",
    "replicaset",
    "retryreads",
    "retrywrites",
    "servermonitoringmode",
    "serverselectiontimeoutms",
    "srvmaxhosts",
    "srvservicename",
    "ssl",
    "tls",
    "tlsallowinvalidcertificates",
    "tlsallowinvalidhostnames",
    "tlscafile",
    "tlscertificatekeyfile",
    "tlscrlfile",
    "tlsinsecure",
    "w",
    "wtimeoutms",
];

/// Where the businesses are, if in MongoDB.
#[derive(Clone, Debug)]
pub struct Mongodb {
    /// MONGODB_URI without the options that were left out.
    pub uri: Secret,
    /// MONGODB_DB_NAME, else the URI's database.
    pub database: String,
    /// MONGODB_MAX_POOL_SIZE: connections to each server, and calls under way at once.
    pub max_pool_size: usize,
    /// MONGODB_MIN_POOL_SIZE: connections that are kept open.
    pub min_pool_size: usize,
    /// Names of the options that were left out because this driver doesn't know them.
    pub dropped: Vec<&'static str>,
}

/// Reads it; `pool` is the largest and the smallest size of the pool. `None` if it is not set or wrong.
pub(super) fn mongodb(vars: &mut Vars, pool: (usize, usize)) -> Option<Mongodb> {
    let name = vars.text("MONGODB_DB_NAME");
    let uri = vars.secret("MONGODB_URI")?;
    let (uri, dropped) = without_dropped(uri.reveal());
    let parsed = match ConnectionString::parse(uri.reveal()) {
        Ok(parsed) => parsed,
        Err(_) => {
            vars.problem("MONGODB_URI", why_malformed(uri.reveal()));
            return None;
        }
    };
    let Some(database) = name.or(parsed.default_database) else {
        let what = "is not set, and MONGODB_URI names no database after its host; name the one that has the \
                    collection `businesses`";
        vars.problem("MONGODB_DB_NAME", what);
        return None;
    };
    if database.len() > DATABASE_MAX || database.contains(DATABASE_REFUSES) {
        vars.problem(
            "MONGODB_DB_NAME",
            format!("must be a database's name: at most {DATABASE_MAX} bytes, none of / \\ . \" $ or space"),
        );
        return None;
    }
    Some(Mongodb { uri, database, max_pool_size: pool.0, min_pool_size: pool.1, dropped })
}

fn without_dropped(uri: &str) -> (Secret, Vec<&'static str>) {
    let Some((before, options)) = uri.split_once('?') else { return (Secret::new(uri), Vec::new()) };
    let mut dropped = Vec::new();
    let mut kept: Vec<&str> = Vec::new();
    // pymongo takes `;` between options as well, and nothing between two signs
    let options = options.replace(';', "&");
    for pair in options.split('&').filter(|pair| !pair.is_empty()) {
        match DROPPED.into_iter().find(|name| *name == key(pair)) {
            Some(name) => dropped.push(name),
            None => kept.push(pair),
        }
    }
    let question = if kept.is_empty() { "" } else { "?" };
    (Secret::new(format!("{before}{question}{}", kept.join("&"))), dropped)
}

fn key(pair: &str) -> String {
    pair.split('=').next().unwrap_or_default().to_ascii_lowercase()
}

/// The part that is wrong. Which one is found by trying the parts one by one.
fn why_malformed(uri: &str) -> String {
    let Some(rest) = uri.strip_prefix("mongodb://").or_else(|| uri.strip_prefix("mongodb+srv://")) else {
        return "must begin with mongodb:// or mongodb+srv://".to_owned();
    };
    let (before, options) = rest.split_once('?').unwrap_or((rest, ""));
    let (user, host) = before.rsplit_once('@').map_or(("", before), |(user, host)| (user, host));
    if !user.is_empty() && ConnectionString::parse(format!("mongodb://{user}@host")).is_err() {
        return "has a user or password with a character that must be percent-encoded (: / ? # [ ] @ %)"
            .to_owned();
    }
    let scheme = uri.split("://").next().unwrap_or_default();
    if ConnectionString::parse(format!("{scheme}://{host}")).is_err() {
        return "has a host, port or database that can't be one; the form is \
                mongodb://user:password@host:27017,host2:27017/database?options (a user or password with one of \
                : / ? # [ ] @ % must be percent-encoded; mongodb+srv:// takes one name without a port)"
            .to_owned();
    }
    for pair in options.split('&') {
        let parsed = ConnectionString::parse(format!("mongodb://user:word@host/?{pair}"));
        if parsed.is_err() {
            return match NAMED.into_iter().find(|name| *name == key(pair)) {
                Some(name) => format!("has the option {name} with a value that it can't have here"),
                None => "has an option that this driver doesn't know (or a ? in the password, which must be \
                         percent-encoded); leave it out"
                    .to_owned(),
            };
        }
    }
    "has options that contradict each other".to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn read(uri: &str, name: Option<&str>) -> Result<Mongodb, Vec<String>> {
        let mut map = HashMap::from([("MONGODB_URI".to_owned(), uri.to_owned())]);
        name.map(|name| map.insert("MONGODB_DB_NAME".to_owned(), name.to_owned()));
        let mut vars = Vars::from_map(map);
        let read = mongodb(&mut vars, (100, 10));
        read.ok_or_else(|| vars.into_problems().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_database_is_the_variables_else_the_uris() {
        assert_eq!(read("mongodb://a/one", None).expect("right").database, "one");
        assert_eq!(read("mongodb://a/one", Some("two")).expect("right").database, "two");
        let problems = read("mongodb://a", None).expect_err("no database");
        assert!(
            problems.len() == 1 && problems[0].starts_with("MONGODB_DB_NAME: is not set"),
            "{problems:?}"
        );
        assert!(read("mongodb://a", Some("a.b")).is_err());
    }

    #[test]
    fn options_of_another_driver_are_left_out_and_named() {
        let read = read(
            "mongodb://u:p%40@a,b:1/db?replicaSet=rs0&socketTimeoutMS=20000&w=majority&compressors=zstd",
            None,
        )
        .expect("right");
        assert_eq!(read.dropped, ["sockettimeoutms", "compressors"]);
        assert_eq!(read.uri.reveal(), "mongodb://u:p%40@a,b:1/db?replicaSet=rs0&w=majority");
        let uri_of = |uri| super::without_dropped(uri).0;
        assert_eq!(uri_of("mongodb://a/db?socketTimeoutMS=1").reveal(), "mongodb://a/db");
        assert_eq!(uri_of("mongodb://a/db?").reveal(), "mongodb://a/db");
        let python = "mongodb://a/db?retryWrites=true;w=majority&&uuidRepresentation=standard";
        assert_eq!(uri_of(python).reveal(), "mongodb://a/db?retryWrites=true&w=majority");
    }

    #[test]
    fn a_malformed_uri_says_which_part_and_shows_none() {
        for (uri, word) in [
            ("postgres://u:hunter2@h/db", "must begin with"),
            ("mongodb://u:hunter2@/db", "host"),
            ("mongodb://u:hunter2@h:port/db", "host"),
            ("mongodb://u:hunter2@x@h/db", "percent-encoded"),
            ("mongodb://u:hunter2?x@h/db", "percent-encoded"),
            ("mongodb+srv://u:hunter2@h:27017/db", "without a port"),
            ("mongodb://u:hunter2@h/db?connectTimeoutMS=hunter2", "connecttimeoutms"),
            ("mongodb://u:hunter2@h/db?hunter2=1", "doesn't know"),
            ("mongodb://u:hunter2@h/db?tls=true&ssl=false", "contradict"),
        ] {
            let problems = read(uri, None).expect_err(uri);
            assert!(problems.len() == 1 && problems[0].contains(word), "{uri}: {problems:?}");
            assert!(!problems[0].contains("hunter2"), "{uri}: {problems:?}");
        }
    }
}
