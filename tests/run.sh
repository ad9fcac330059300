#!/usr/bin/env bash
# Everything that must hold before a change is merged. Installs what is missing, needs nothing running, leaves nothing
# running. Arguments go to `cargo test`, and leave out what is deployed: tests/run.sh --test it a_declined
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/setup.sh

setup
need_rust_components

say "Format"
cargo fmt --check

say "Lints"
cargo clippy --all-targets --locked -- -D warnings

say "Documentation"
RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps --locked

say "Examples and benchmarks compile"
cargo build --examples --benches --locked

say "Tests: real RabbitMQ, real Redis, the gateway's sandbox"
cargo test --locked "$@"

(($# == 0)) || exit 0
say "Dockerfile, compose file, chart and alerts"
target=${CARGO_TARGET_DIR:-target}
CAPTURE_WORKER=$target/debug/capture-worker CAPTURE_METRICS=$target/tmp/metrics.txt bash deploy/validate.sh
