#!/usr/bin/env bash
# Validates the files in deploy: scripts, Dockerfile, the image's root file system, compose file,
# chart.
#
#     bash tests/deploy/validate.sh
#
# It ends with chart.sh, which documents the arguments and the environment variables.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. tests/setup.sh
. tests/deploy/tools/fetch.sh
need_tools

step() { printf '== %s\n' "$*"; }

step "scripts"
shellcheck --external-sources --source-path=SCRIPTDIR deploy/*.sh tests/*.sh tests/deploy/*.sh tests/deploy/*/*.sh .ci/run

step "Dockerfile"
hadolint --failure-threshold style deploy/Dockerfile
python tests/deploy/checks.py image

step "compose.yaml"
check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml
yamllint --strict -d '{extends: default, rules: {line-length: {max: 160}, braces: {max-spaces-inside: 0}}}' deploy/compose.yaml

image_root() {
    local root=$1/root code=0 program
    program=/usr/local/bin/$(basename "$CAPTURE_WORKER")
    bash deploy/rootfs.sh "$root" "$CAPTURE_WORKER"
    if [[ -n $(find "$root" -perm /6000 -o ! -type l -perm /022 ! -path "$root/tmp") ]]; then
        die "A file in the image's root is writable for others, or has the setuid or setgid bit."
    fi
    # Runs as the image's user: the program must resolve the name, and report that the connection
    # was refused.
    printf '127.0.0.1 gateway.test\n' >"$root/etc/hosts"
    openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$root/private.pem" 2>/dev/null
    openssl pkey -in "$root/private.pem" -pubout -out "$root/public.pem"
    chmod 444 "$root"/*.pem
    env -i CAPTURE__BROKER__URL=amqp://gateway.test:1 CAPTURE__REDIS__URL=redis://gateway.test:1 \
        CAPTURE__GATEWAY__BASE_URL=https://gateway.test:1 CAPTURE__GATEWAY__CLIENT_ID=5X00000000000000 \
        CAPTURE__GATEWAY__PRIVATE_KEY_FILE=/private.pem CAPTURE__GATEWAY__PUBLIC_KEY_FILE=/public.pem \
        "$(command -v chroot)" --userspec=65532:65532 "$root" "$program" check >"$1/said" 2>&1 || code=$?
    if ((code != 1)) || ! grep -q '^gateway: .*Connection refused' "$1/said"; then
        die "$(cat "$1/said")" "capture-worker check in the image's root file system:" \
            "exit code $code, expected 1 and 'Connection refused'"
    fi
    printf '    runs as 65532 and resolves names; %s files without the program: %s KiB\n' \
        "$(find "$root" -type f ! -path "$root$program" | wc -l)" "$(du -sk --exclude="$(basename "$program")" "$root" | cut -f 1)"
}
if [[ -z ${CAPTURE_WORKER:-} ]]; then
    step "root of the image: skipped, CAPTURE_WORKER does not name a program"
elif ((EUID != 0)) || ! command -v dpkg-query >/dev/null; then
    step "root of the image: skipped, it needs root (for chroot) and Debian's libraries"
else
    step "root of the image"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    image_root "$work"
fi

bash tests/deploy/chart.sh "$@"
