//! `capture-worker sandbox`.
use super::Exit;
#[derive(clap::Args)]
pub(super) struct SandboxArgs {}
impl SandboxArgs {
    pub(super) async fn run(self) -> Exit {
        Exit::Done
    }
}
