//! placeholder
pub fn run() -> Result<(), super::Failed> {
    Err(super::Failed::Other("not built".into()))
}
