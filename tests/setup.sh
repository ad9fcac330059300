# shellcheck shell=bash
# Sourced by tests/run.sh, deploy/demo.sh and the scripts in tests/deploy. Checks that what they need is
# installed, and installs Debian packages that are missing.
#
# Rust's toolchain must be installed already. From Debian come a C compiler (the cryptography is
# built from source), RabbitMQ, Redis and, for validation, Python. The servers run as private
# processes only: no system service is left running that was not running before.

say() { printf '\n== %s\n' "$*"; }
die() {
    printf '%s\n' "$@" >&2
    exit 1
}

# cargo may be installed, but not on the PATH of a shell that started before the installation.
PATH="$PATH:${CARGO_HOME:-${HOME:-}/.cargo}/bin"

need_cargo() {
    local minimum found
    minimum=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    if ! found=$(cargo --version 2>/dev/null); then
        die "cargo was not found. Rust $minimum or newer is needed. To install it:" \
            "    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"
    fi
    found=${found#cargo } found=${found%%[ -]*}
    if [[ $(printf '%s\n' "$minimum" "$found" | sort -V | head -n 1) != "$minimum" ]]; then
        die "cargo is version $found. Rust $minimum or newer is needed. To update it:" \
            "    rustup update stable"
    fi
}

# A minimal toolchain has no rustfmt and no clippy.
need_rust_components() {
    local missing=()
    cargo fmt --version >/dev/null 2>&1 || missing+=(rustfmt)
    cargo clippy --version >/dev/null 2>&1 || missing+=(clippy)
    ((${#missing[@]} == 0)) && return
    say "rustup component add ${missing[*]}"
    command -v rustup >/dev/null || die \
        "These components of the Rust toolchain are missing, and there is no rustup: ${missing[*]}" \
        "Install them in the way in which you installed Rust."
    rustup component add "${missing[@]}"
}

compiles_c() {
    printf '#include <stdlib.h>\nint main(void) { return 0; }\n' | cc -x c -o /dev/null - 2>/dev/null
}

# Prints the names of the Debian packages that are missing.
#
# Purposes: running (the program and its servers), validation (of deploy/).
missing_packages() { # purpose...
    local purpose
    for purpose in "$@"; do
        case $purpose in
            running)
                compiles_c || printf '%s\n' gcc libc6-dev
                [[ -x /usr/lib/rabbitmq/bin/rabbitmq-server && -x /usr/bin/epmd ]] || echo rabbitmq-server
                command -v redis-server >/dev/null || [[ -x /usr/bin/redis-server ]] || echo redis-server
                ;;
            validation)
                # Debian's python3 has the module venv, which fails without the package
                # python3-venv.
                python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
                [[ -s /etc/ssl/certs/ca-certificates.crt ]] || echo ca-certificates
                command -v openssl >/dev/null || echo openssl
                ;;
        esac
    done
}

# Prints the system services of RabbitMQ and Redis that are active; nothing without systemd.
running_services() {
    [[ -d /run/systemd/system ]] || return 0
    local service
    for service in rabbitmq-server.service redis-server.service epmd.service epmd.socket; do
        if systemctl is-active --quiet "$service"; then echo "$service"; fi
    done
}

# Runs in a subshell, so that its trap always restores the system's policy for starting services.
install_packages() (
    as_root=()
    if ((EUID != 0)); then
        command -v sudo >/dev/null ||
            die "These Debian packages are missing:" "    $*" \
                "To install them, run this script as root or install sudo."
        as_root=(sudo)
    fi
    command -v apt-get >/dev/null ||
        die "These Debian packages are missing:" "    $*" \
            "There is no apt-get to install them with: install their programs in another way."

    before=$(running_services)
    policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
        trap '"${as_root[@]}" rm -f "$policy"' EXIT
        trap 'exit 130' INT TERM HUP
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
        "${as_root[@]}" chmod 755 "$policy"
    fi
    "${as_root[@]}" apt-get update -q
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@" </dev/null
    # An existing policy may have let the services start, and no policy prevents a start at the next
    # boot.
    if [[ -d /run/systemd/system ]]; then
        for package in "$@"; do
            case $package in
                rabbitmq-server) services=(rabbitmq-server.service epmd.service epmd.socket) ;;
                redis-server) services=(redis-server.service) ;;
                *) continue ;;
            esac
            for service in "${services[@]}"; do
                [[ $'\n'$before$'\n' == *$'\n'$service$'\n'* ]] ||
                    "${as_root[@]}" systemctl --quiet disable --now "$service" || true
            done
        done
    fi
)

need_packages() { # purposes, as for missing_packages
    local packages
    mapfile -t packages < <(missing_packages "$@")
    ((${#packages[@]} > 0)) || return 0
    say "Installing from Debian: ${packages[*]}"
    install_packages "${packages[@]}"
    mapfile -t packages < <(missing_packages "$@")
    ((${#packages[@]} == 0)) ||
        die "These packages were installed, and still do not work: ${packages[*]}"
}

setup() {
    need_cargo
    need_packages running
}
