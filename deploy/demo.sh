#!/usr/bin/env bash
# A day of shipments on this machine: a private RabbitMQ and Redis, the gateway's sandbox, two workers, some 400 jobs, and at
# the end the proof that each was captured once or given up for a reason. Needs nothing running, leaves nothing running.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/setup.sh

setup

say "Building"
cargo build --release --locked --bin capture-worker --example demo

say "Running"
target=${CARGO_TARGET_DIR:-target}
exec "$target/release/examples/demo" "$@"
