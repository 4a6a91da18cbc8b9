//! placeholder
#[derive(clap::Args)]
pub struct Args {}
pub fn run(_: Args) -> Result<(), String> {
    Err("not built".into())
}
