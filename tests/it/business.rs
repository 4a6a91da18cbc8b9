//! The `business` commands end to end, over the embedded store, and what the directory makes of what they
//! wrote.

use std::collections::HashMap;
use std::time::Duration;

use whatsapp_webhook::cli::Failed;
use whatsapp_webhook::cli::business::{self, Add, Command};
use whatsapp_webhook::directory;
use whatsapp_webhook::secret::Secret;
use whatsapp_webhook::{clock, config};

use crate::directory::{SECRET, config};

fn run(config: &config::Directory, command: Command, input: &str) -> Result<String, String> {
    let mut out = Vec::new();
    let result = business::run(command, config, &mut out, &mut input.as_bytes());
    let result = result.map_err(|failed| match failed {
        Failed::Usage(what) | Failed::Other(what) => what,
        Failed::Config(problems) => format!("{problems:?}"),
        Failed::Told => String::new(),
    });
    let out = String::from_utf8(out).expect("text");
    for text in [&out, result.as_ref().err().unwrap_or(&String::new())] {
        assert!(!text.contains("EAAG"), "a token in: {text}");
    }
    result.map(|()| out)
}

fn add(name: &str, number: &str) -> Add {
    Add {
        name: Some(format!("The {name}")),
        subdomain: name.to_owned(),
        phone_number_ids: vec![number.to_owned()],
        waba_id: Some("55".to_owned()),
        ..Add::default()
    }
}

fn token(config: &config::Directory, number: &str) -> Result<String, String> {
    let directory = directory::open(config).map_err(|e| e.to_string())?;
    let business = directory.by_number(number).map_err(|e| e.to_string())?;
    Ok(business.token.reveal().to_owned())
}

#[derive(clap::Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[test]
fn the_documented_options_are_understood_and_a_token_is_not_one_of_them() {
    use clap::Parser;
    let parse = |line: &str| Cli::try_parse_from(std::iter::once("business").chain(line.split(' ')));
    let add = "add --name N --subdomain s --phone-number-id 1 --phone-number-id 2,3 --waba-id 4 --app a";
    match parse(add).map(|cli| cli.command) {
        Ok(Command::Add(add)) => {
            assert_eq!(add.phone_number_ids, ["1", "2", "3"]);
            assert_eq!((&*add.subdomain, add.app.as_deref()), ("s", Some("a")));
        }
        other => panic!("{:?}", other.err()),
    }
    for line in ["list", "show s", "remove s", "import", "export", "add --subdomain s --disable --keep-token"]
    {
        assert!(parse(line).is_ok(), "{line}");
    }
    for line in ["add --subdomain s --token EAAG", "add --subdomain s --enable --disable", "show", "add"] {
        assert!(parse(line).is_err(), "{line}");
    }
}

#[test]
fn a_business_is_added_shown_updated_disabled_and_removed() {
    let folder = tempfile::tempdir().expect("folder");
    let config = config(folder.path());
    assert!(
        run(&config, Command::Add(add("cafe", "106")), " EAAG-one\n").expect("added").contains("added cafe")
    );
    assert_eq!(token(&config, "106"), Ok("EAAG-one".to_owned()));
    let shown = run(&config, Command::Show { sub_domain: "cafe".to_owned() }, "").expect("shown");
    assert!(shown.contains("whatsappAccessToken     encrypted\n"), "{shown}");
    assert!(shown.contains("whatsappPhoneNumberIds  106\n"), "{shown}");
    let listed = run(&config, Command::List, "").expect("listed");
    assert!(listed.lines().nth(1).is_some_and(|line| line.starts_with("cafe ")), "{listed}");

    let update = || Add { subdomain: "cafe".to_owned(), ..Add::default() };
    run(&config, Command::Add(update()), "EAAG-two").expect("updated");
    assert_eq!(token(&config, "106"), Ok("EAAG-two".to_owned()));
    let off = Add { disable: true, keep_token: true, ..update() };
    run(&config, Command::Add(off), "").expect("disabled");
    assert!(token(&config, "106").is_err_and(|e| e.starts_with("business_disabled")));
    let on = Add { enable: true, keep_token: true, phone_number_ids: vec!["107".to_owned()], ..update() };
    run(&config, Command::Add(on), "").expect("enabled");
    assert_eq!(token(&config, "107"), Ok("EAAG-two".to_owned()));
    assert!(token(&config, "106").is_err_and(|e| e.starts_with("no_business")));

    let remove = || Command::Remove { sub_domain: "cafe".to_owned() };
    run(&config, remove(), "").expect("removed");
    assert!(run(&config, remove(), "").is_err());
    assert!(token(&config, "107").is_err_and(|e| e.starts_with("no_business")));
}

#[test]
fn everything_that_is_wrong_with_an_add_is_named_at_once_and_nothing_is_stored() {
    let folder = tempfile::tempdir().expect("folder");
    let config = config(folder.path());
    let wrong = Add {
        subdomain: "-a:b".to_owned(),
        phone_number_ids: vec!["+1 650".to_owned(), "107".to_owned()],
        waba_id: Some("x".to_owned()),
        ..Add::default()
    };
    let error = run(&config, Command::Add(wrong), "two words").expect_err("wrong");
    for part in ["subdomain", "--name is required", "\"+1 650\"", "waba-id", "white space"] {
        assert!(error.contains(part), "{part} in: {error}");
    }
    for (input, part) in [("  \n", "no token"), (&*"x".repeat(401), "at most 400"), ("a\nb", "white space")] {
        let error = run(&config, Command::Add(add("cafe", "106")), input).expect_err("wrong");
        assert!(error.contains(part), "{error}");
    }
    assert!(run(&config, Command::Add(add("default", "106")), "EAAG").is_err());
    assert_eq!(run(&config, Command::Export, ""), Ok(String::new()));
}

#[test]
fn a_number_of_another_live_business_is_refused_with_its_subdomain() {
    let folder = tempfile::tempdir().expect("folder");
    let config = config(folder.path());
    run(&config, Command::Add(add("cafe", "106")), "EAAG-one").expect("added");
    let error = run(&config, Command::Add(add("bar", "106")), "EAAG-two").expect_err("taken");
    assert!(error.contains("106") && error.contains("\"cafe\""), "{error}");
    run(&config, Command::Add(Add { disable: true, ..add("bar", "106") }), "EAAG")
        .expect("not live, no claim");
    let off = Add { disable: true, keep_token: true, subdomain: "cafe".to_owned(), ..Add::default() };
    run(&config, Command::Add(off), "").expect("disabled");
    let on = Add { enable: true, ..add("bar", "106") };
    run(&config, Command::Add(on), "EAAG-two").expect("free now");
    assert_eq!(token(&config, "106"), Ok("EAAG-two".to_owned()));
    let on = Add { enable: true, keep_token: true, subdomain: "cafe".to_owned(), ..Add::default() };
    assert!(run(&config, Command::Add(on), "").expect_err("taken").contains("\"bar\""));
}

#[test]
fn what_is_exported_is_imported_elsewhere_and_its_tokens_still_decrypt() {
    let (here, there) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    let (here, there) = (config(here.path()), config(there.path()));
    let mut tokens = HashMap::new();
    for n in 0..30 {
        let (name, number, token) = (format!("b{n}"), format!("10{n}"), format!("EAAG-{n}"));
        run(&here, Command::Add(add(&name, &number)), &token).expect("added");
        tokens.insert(number, token);
    }
    let lines = run(&here, Command::Export, "").expect("exported");
    for _ in 0..2 {
        let said = run(&there, Command::Import, &lines).expect("imported");
        assert!(said.contains("imported 30 businesses, 30 of them"), "{said}");
    }
    assert_eq!(run(&there, Command::Export, "").expect("exported"), lines, "the same, ids included");
    let directory = directory::open(&there).expect("opens");
    assert_eq!(directory.warm_up(), Ok(30));
    for (number, token) in &tokens {
        assert_eq!(directory.by_number(number).expect("known").token.reveal(), token);
    }
    assert_eq!(directory.stats().misses, 0);
}

#[test]
fn a_business_with_a_name_that_add_refuses_is_imported_exported_and_updated() {
    let (here, there) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    let (here, there) = (config(here.path()), config(there.path()));
    let line = |name: &str, number: &str, token: &str| {
        let text = |text: &str| serde_json::to_string(text).expect("json");
        format!(
            r#"{{"_id":{0},"name":"","subDomain":{0},"wabaId":"w 1","whatsappPhoneNumberIds":[{1},""],"whatsappAccessToken":"{token}","whatsappEnabled":true,"isActive":true}}"#,
            text(name),
            text(number),
        )
    };
    let long = "x".repeat(4096);
    let odd = ["default", "café shop", " ", "a:b", "-", "日本", "\"", &*long];
    let number = |n: usize| format!("n°{n} {}", "y".repeat(120));
    let lines: Vec<String> =
        odd.iter().enumerate().map(|(n, name)| line(name, &number(n), &format!("EAAG-{n}"))).collect();
    run(&here, Command::Import, &lines.join("\n")).expect("imported");
    // not through `run`: these tokens are in the clear
    let mut exported = Vec::new();
    assert!(business::run(Command::Export, &here, &mut exported, &mut &b""[..]).is_ok());
    let exported = String::from_utf8(exported).expect("text");
    run(&there, Command::Import, &exported).expect("imported");
    for n in 0..odd.len() {
        assert_eq!(token(&there, &number(n)), Ok(format!("EAAG-{n}")));
    }
    let update = || Add { subdomain: "café shop".to_owned(), ..Add::default() };
    run(&there, Command::Add(update()), "EAAG-new").expect("updated");
    assert_eq!(token(&there, &number(1)), Ok("EAAG-new".to_owned()));
    let wrong = Add { waba_id: Some("x".to_owned()), keep_token: true, ..update() };
    assert!(run(&there, Command::Add(wrong), "").expect_err("wrong").contains("waba-id"));
    assert!(run(&there, Command::Add(add("the café", "106")), "EAAG").is_err(), "add is strict");
    for (bad, part) in [("", "subDomain"), ("a\nb", "subDomain"), (&*"x".repeat(4097), "subDomain")] {
        assert!(run(&there, Command::Import, &line(bad, "1", "t")).expect_err("bad").contains(part));
    }
    for bad in ["y\u{1b}", &*"y".repeat(129)] {
        let error = run(&there, Command::Import, &line("a", bad, "t")).expect_err("bad");
        assert!(error.contains("whatsappPhoneNumberIds"), "{error}");
    }
}

#[test]
fn an_import_with_a_bad_line_names_it_and_imports_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let config = config(folder.path());
    let good = r#"{"subDomain":"a","whatsappPhoneNumberIds":["1"],"whatsappEnabled":true,"isActive":true}"#;
    let same_number = good.replace("\"a\"", "\"b\"");
    let long = format!("{{\"subDomain\":\"{}\"}}", "x".repeat(300_000));
    let lines = format!("{good}\n\nnot json\n{good}\n{long}\n{{\"subDomain\":\"\"}}");
    let error = run(&config, Command::Import, &lines).expect_err("bad lines");
    for line in [
        "line 3: it is not JSON",
        "line 4: the same subdomain as line 1",
        "line 5: longer",
        "line 6: subDomain \"\": 1 to",
    ] {
        assert!(error.contains(line), "{line} in: {error}");
    }
    let error = run(&config, Command::Import, &format!("{good}\n{same_number}")).expect_err("ambiguous");
    assert!(error.contains("a, b"), "{error}");
    assert_eq!(run(&config, Command::Export, ""), Ok(String::new()));
    run(&config, Command::Import, good).expect("good");
}

#[test]
fn a_token_that_this_secret_does_not_open_is_shown_as_that() {
    let folder = tempfile::tempdir().expect("folder");
    let mut config = config(folder.path());
    run(&config, Command::Add(add("cafe", "106")), "EAAG-one").expect("added");
    config.encryption_secret = Some(Secret::new("another"));
    let show = || Command::Show { sub_domain: "cafe".to_owned() };
    assert!(run(&config, show(), "").expect("shown").contains("unreadable with this ENCRYPTION_SECRET"));
    assert!(token(&config, "106").is_err_and(|e| e.starts_with("token_invalid")));
    config.encryption_secret_old = Some(Secret::new(SECRET));
    assert!(run(&config, show(), "").expect("shown").contains("ENCRYPTION_SECRET_OLD"));
    assert_eq!(token(&config, "106"), Ok("EAAG-one".to_owned()));
}

/// The service can't commit meanwhile, and its committer waits 5 s at most.
#[test]
fn the_largest_import_takes_a_moment_and_one_more_line_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let config = config(folder.path());
    let line = |n: usize| {
        format!(
            "{{\"subDomain\":\"b{n}\",\"whatsappPhoneNumberIds\":[\"1{n}\",\"2{n}\"],\
             \"whatsappAccessToken\":\"{}\",\"whatsappEnabled\":true,\"isActive\":true}}\n",
            "5".repeat(700)
        )
    };
    let lines: String = (0..10_000).map(line).collect();
    let before = clock::monotonic();
    run(&config, Command::Import, &lines).expect("imported");
    let took = clock::monotonic() - before;
    println!("10,000 businesses imported in {took:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    run(&config, Command::Import, &lines).expect("imported again");
    let error = run(&config, Command::Import, &(lines + &line(10_000))).expect_err("too many");
    assert!(error.contains("line 10001: at most 10000"), "{error}");
}
