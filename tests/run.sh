#!/usr/bin/env bash
# Checks everything that must hold before a change is merged. Installs missing tools. It needs no
# running servers and leaves none running. Arguments are passed to `cargo test`, and then the checks
# of what is deployed are skipped: tests/run.sh --test it a_drain
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tests/setup.sh

setup
need_rust_components

say "Format"
cargo fmt --all --check

say "Lints"
cargo clippy --workspace --all-targets --locked -- -D warnings

say "Documentation"
RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps --locked

say "Tests with a real RabbitMQ, a real Redis and the gateway's sandbox"
cargo test --locked "$@"

(($# == 0)) || exit 0
say "Dockerfile, compose file, chart and alerts"
target=${CARGO_TARGET_DIR:-target}
CAPTURE_WORKER=$target/debug/capture-worker CAPTURE_METRICS=$target/tmp/metrics.txt \
    bash tests/deploy/validate.sh
