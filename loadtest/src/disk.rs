//! The disk alone, before the load: what a durable 200 waits for at least.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;
use whatsapp_webhook::clock;

use crate::timing::{Quantiles, Recorder};

/// How long it is asked.
const TIME: Duration = Duration::from_secs(1);
/// How often at most.
const COUNT_MAX: usize = 5_000;
/// What is written before each sync: a page of the store.
const PAGE: usize = 16 << 10;
/// The file's length in pages. It is written once before, so that no sync makes it longer.
const PAGES: u64 = 256;

/// Writes a page and syncs it, again and again for a second, in a file in `folder` that is removed; how long that took,
/// in microseconds. Nothing where it can't be done.
pub fn probe(folder: &Path) -> Quantiles {
    let path = folder.join("disk-probe");
    let times = times(&path);
    let _ = std::fs::remove_file(&path);
    times.map_or_else(|_| Quantiles::default(), |times| Quantiles::of(&times))
}

fn times(path: &Path) -> io::Result<Histogram<u64>> {
    let file = File::create(path)?;
    let page = [0xa5; PAGE];
    for nth in 0..PAGES {
        file.write_all_at(&page, nth * PAGE as u64)?;
    }
    file.sync_all()?;
    let times = Recorder::new();
    let end = clock::monotonic() + TIME;
    for nth in 0..COUNT_MAX {
        let begun = clock::monotonic();
        if begun >= end {
            break;
        }
        file.write_all_at(&page, nth as u64 % PAGES * PAGE as u64)?;
        file.sync_data()?;
        times.record(nth, (clock::monotonic() - begun).as_micros() as u64);
    }
    Ok(times.all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_takes_its_time_and_keeps_nothing() {
        let folder = std::env::temp_dir().join(format!("loadtest-disk-{}", std::process::id()));
        std::fs::create_dir(&folder).expect("a folder");
        let times = probe(&folder);
        assert!(times.count > 0 && times.p50 > 0 && times.p50 <= times.max, "{times}");
        std::fs::remove_dir(&folder).expect("it is empty again");
        assert_eq!(probe(Path::new("/nowhere")), Quantiles::default());
    }
}
