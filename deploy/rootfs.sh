#!/usr/bin/env bash
# Assembles the root file system of an image from this Debian: programs, the shared libraries that
# they need, and little else. The Dockerfile runs it. It runs on any Debian 12:
#
#     bash deploy/rootfs.sh FOLDER PROGRAM...
#
# There is no shell and no package manager, so a compromised worker has no other program to start.
# The packages of all copied files are listed in /var/lib/dpkg/status.d, where scanners look for
# them.
set -euo pipefail

root=$1
shift
[[ ! -e $root ]] || { printf '%s exists already: name a new folder\n' "$root" >&2; exit 1; }

packages=(base-files)
take() { # copies a file of a package to the same path under the root, and notes the package
    local real package
    # /lib is a link to /usr/lib: the package may list the file under either path.
    real=$(realpath "$1")
    package=$(dpkg-query --search "$1" 2>/dev/null || dpkg-query --search "$real" 2>/dev/null || dpkg-query --search "${real#/usr}")
    package=${package%%:*}
    install -D -m "$(stat -c %a "$real")" "$real" "$root$1"
    [[ " ${packages[*]} " == *" $package "* ]] || packages+=("$package")
}

for program in "$@"; do
    install -D -m 755 "$program" "$root/usr/local/bin/$(basename "$program")"
    # ldd prints "libc.so.6 => /lib/… (0x…)", and the loader as "/lib64/… (0x…)". A missing library
    # has no path.
    libraries=$(ldd "$program")
    if grep -F 'not found' <<<"$libraries" >&2; then exit 1; fi
    while read -r library; do
        [[ -e $root$library ]] || take "$library"
    done < <(grep -o '/[^ ]*' <<<"$libraries")
done

# The certificate authorities for gateway, broker and Redis. dpkg-query does not know the bundle,
# because the package's script generates it.
install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
packages+=(ca-certificates)

# Host names: files first, as usual. The container runtime adds /etc/hosts and /etc/resolv.conf.
printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$root/etc/nsswitch.conf"
printf 'root:x:0:0:root:/root:/sbin/nologin\ncapture:x:65532:65532:capture-worker:/tmp:/sbin/nologin\n' >"$root/etc/passwd"
printf 'root:x:0:\ncapture:x:65532:\n' >"$root/etc/group"
install -m 644 /etc/os-release "$root/etc/os-release"
install -d -m 1777 "$root/tmp"

for package in "${packages[@]}"; do
    mkdir -p "$root/var/lib/dpkg/status.d" "$root/usr/share/doc/$package"
    dpkg-query --status "$package" >"$root/var/lib/dpkg/status.d/$package"
    # The licenses require that they are distributed with the files.
    cp -L "/usr/share/doc/$package/copyright" "$root/usr/share/doc/$package/"
done
