//! The program: everything is in the library, so that tests can be handed the same parts.

fn main() -> std::process::ExitCode {
    capture_worker::cli::main()
}
