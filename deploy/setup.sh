# shellcheck shell=bash
# Sourced by tests/run.sh, deploy/demo.sh and the scripts that validate: makes sure that what they need is there, and installs
# what Debian has of it.
#
# Rust's toolchain is the one thing that must be there already. From Debian come a C compiler (the cryptography is built from
# source), RabbitMQ and Redis, and for validation Python. Only the servers' programs are used, as private processes: no system
# service is left running that was not running before.

say() { printf '\n== %s\n' "$*"; }
die() {
    printf '%s\n' "$@" >&2
    exit 1
}

# Rust: cargo may be installed, but not on the PATH of a shell that started before.
PATH="$PATH:${CARGO_HOME:-${HOME:-}/.cargo}/bin"

need_cargo() {
    local minimum found
    minimum=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    if ! found=$(cargo --version 2>/dev/null); then
        die "Rust $minimum or newer is needed, and cargo was not found. To install it:" \
            "    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"
    fi
    found=${found#cargo } found=${found%%[ -]*}
    if [[ $(printf '%s\n' "$minimum" "$found" | sort -V | head -n 1) != "$minimum" ]]; then
        die "Rust $minimum or newer is needed, and this is $found: rustup update stable"
    fi
}

# rustfmt and clippy are left out of a minimal toolchain.
need_rust_components() {
    local missing=()
    cargo fmt --version >/dev/null 2>&1 || missing+=(rustfmt)
    cargo clippy --version >/dev/null 2>&1 || missing+=(clippy)
    ((${#missing[@]} == 0)) && return
    say "rustup component add ${missing[*]}"
    command -v rustup >/dev/null || die "Missing: ${missing[*]}. Install them with your Rust toolchain."
    rustup component add "${missing[@]}"
}

compiles_c() {
    printf '#include <stdlib.h>\nint main(void) { return 0; }\n' | cc -x c -o /dev/null - 2>/dev/null
}

# What is missing, as Debian's package names.
missing_packages() { # for what: running (the program and its servers), validation (of what is deployed)
    local purpose
    for purpose in "$@"; do
        case $purpose in
            running)
                compiles_c || printf '%s\n' gcc libc6-dev
                [[ -x /usr/lib/rabbitmq/bin/rabbitmq-server && -x /usr/bin/epmd ]] || echo rabbitmq-server
                command -v redis-server >/dev/null || [[ -x /usr/bin/redis-server ]] || echo redis-server
                ;;
            validation)
                # Debian's python3 has a venv module that can't make one without python3-venv.
                python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
                [[ -s /etc/ssl/certs/ca-certificates.crt ]] || echo ca-certificates
                command -v openssl >/dev/null || echo openssl
                ;;
        esac
    done
}

# Those of our services that run now; empty where there is no systemd.
running_services() {
    [[ -d /run/systemd/system ]] || return 0
    local service
    for service in rabbitmq-server.service redis-server.service epmd.service epmd.socket; do
        if systemctl is-active --quiet "$service"; then echo "$service"; fi
    done
}

# In a subshell, so that its trap is its own: the system's policy for starting services is as before, whatever happens.
install_packages() (
    as_root=()
    if ((EUID != 0)); then
        command -v sudo >/dev/null ||
            die "These Debian packages are missing, and installing them needs root or sudo:" "    $*"
        as_root=(sudo)
    fi
    command -v apt-get >/dev/null ||
        die "These are missing, and there is no apt-get to install them (the names are Debian's):" "    $*"

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
    # A policy that was there already may have let them start; and none keeps them from starting at the next boot.
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

need_packages() { # for what, as for missing_packages
    local packages
    mapfile -t packages < <(missing_packages "$@")
    ((${#packages[@]} > 0)) || return 0
    say "Installing from Debian: ${packages[*]}"
    install_packages "${packages[@]}"
    mapfile -t packages < <(missing_packages "$@")
    ((${#packages[@]} == 0)) || die "Installed, and still not usable: ${packages[*]}"
}

setup() {
    need_cargo
    need_packages running
}
