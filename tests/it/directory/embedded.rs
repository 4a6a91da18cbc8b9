//! The lookup over the embedded store.

use super::*;

fn embedded(folder: &Path) -> (Arc<dyn Store>, Lookup) {
    let config = config(folder);
    let store = whatsapp_webhook::directory::store(&config).expect("opens");
    let lookup = Lookup::new(&config, store.clone());
    (store, lookup)
}

#[test]
fn reading_goes_on_while_another_process_writes() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, lookup) = embedded(folder.path());
    store.upsert(vec![record("cafe", &["106", "107"])]).expect("stored");
    let mut writer = whatsapp_webhook::store::open(folder.path()).expect("opens");
    let transaction = writer
        .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
        .expect("the lock of the writer");
    transaction.execute("DELETE FROM businesses", []).expect("deleted, not committed");
    let before = clock::monotonic();
    let lookup = Arc::new(lookup);
    let asking = lookup.clone();
    for answer in together(100, move || asking.by_number("106")) {
        assert_eq!(answer.expect("no panic").expect("found").phone_number_ids, ["106", "107"]);
    }
    assert!(clock::monotonic() - before < Duration::from_secs(2));
    transaction.commit().expect("committed");
    lookup.clear();
    assert_eq!(reason(lookup.by_number("106")), "no_business");
}

#[test]
fn an_embedded_store_that_fails_is_unavailable_and_mends() {
    let folder = tempfile::tempdir().expect("folder");
    let (store, lookup) = embedded(folder.path());
    store.upsert(vec![record("cafe", &["106"])]).expect("stored");
    assert!(lookup.by_number_at("106", at(1)).is_ok());
    let writer = whatsapp_webhook::store::open(folder.path()).expect("opens");
    writer.execute("ALTER TABLE business_numbers RENAME TO away", []).expect("renamed");
    assert_eq!(reason(lookup.by_number_at("107", at(10))), "directory_unavailable");
    assert!(!lookup.is_connected());
    assert!(lookup.by_number_at("106", at(400)).is_ok(), "stale");
    writer.execute("ALTER TABLE away RENAME TO business_numbers", []).expect("renamed");
    assert_eq!(reason(lookup.by_number_at("107", at(406))), "no_business");
    assert!(lookup.is_connected());
}

#[test]
fn a_store_of_a_later_version_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let writer = whatsapp_webhook::store::open(folder.path()).expect("opens");
    writer.pragma_update(None, "user_version", 999).expect("set");
    let error = whatsapp_webhook::directory::open(&config(folder.path())).err().expect("refused");
    assert!(error.to_string().contains("999"), "{error}");
}
