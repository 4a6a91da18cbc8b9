//! The pieces of the hot path, each beside a floor or a peer. `cargo bench --bench hot`.

#[path = "hot/directory.rs"]
mod directory;

criterion::criterion_group!(hot, directory::bench);
criterion::criterion_main!(hot);
