//! The `capture-worker` program. All its code is in the library, so that tests can use the same
//! parts.

fn main() -> std::process::ExitCode {
    capture_worker::cli::main()
}
