//! The `whatsapp-webhook` command: one line of life, everything else is in the library.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    whatsapp_webhook::cli::run(std::env::args_os())
}
