#!/usr/bin/env bash
# Runs the demo on this machine: a private RabbitMQ and Redis, the gateway's sandbox, two workers
# and some 400 jobs. At the end it proves that each job was captured once, or became a dead letter
# with a reason. It needs no running servers, and leaves none running.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tests/setup.sh

setup

say "Building"
cargo build --release --locked --bin capture-worker --example demo

say "Running"
target=${CARGO_TARGET_DIR:-target}
exec "$target/release/examples/demo" "$@"
