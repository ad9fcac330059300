#!/usr/bin/env bash
# Validates what is deployed: scripts, Dockerfile, compose file, chart. Arguments and environment go to helm/validate.sh.
#
#     bash deploy/validate.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/setup.sh
. deploy/tools/fetch.sh
need_tools

step() { printf '== %s\n' "$*"; }

step "scripts"
shellcheck --external-sources --source-path=SCRIPTDIR deploy/*.sh deploy/*/*.sh tests/*.sh .ci/run

step "Dockerfile"
hadolint --failure-threshold style deploy/Dockerfile

step "compose.yaml"
check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml
yamllint --strict -d '{extends: default, rules: {line-length: {max: 160}, braces: {max-spaces-inside: 0}}}' deploy/compose.yaml

exec bash deploy/helm/validate.sh "$@"
