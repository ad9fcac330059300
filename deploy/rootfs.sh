#!/usr/bin/env bash
# Makes the root of an image out of this Debian: programs, the shared libraries that they need, and little else. The Dockerfile
# runs it; it runs on any Debian 12:
#
#     bash deploy/rootfs.sh FOLDER PROGRAM...
#
# No shell, no package manager: what runs as a worker can start nothing but itself. What was copied stands in
# /var/lib/dpkg/status.d, where scanners look for packages.
set -euo pipefail

root=$1
shift
[[ ! -e $root ]] || { printf '%s exists\n' "$root" >&2; exit 1; }

packages=(base-files)
take() { # a file of a package, to where it lies here
    local real package
    # Since /lib is a link to /usr/lib, the package may know the file by either name.
    real=$(realpath "$1")
    package=$(dpkg-query --search "$1" 2>/dev/null || dpkg-query --search "$real" 2>/dev/null || dpkg-query --search "${real#/usr}")
    package=${package%%:*}
    install -D -m "$(stat -c %a "$real")" "$real" "$root$1"
    [[ " ${packages[*]} " == *" $package "* ]] || packages+=("$package")
}

for program in "$@"; do
    install -D -m 755 "$program" "$root/usr/local/bin/$(basename "$program")"
    # "libc.so.6 => /lib/… (0x…)", and the loader as "/lib64/… (0x…)"; what is not found has no path.
    libraries=$(ldd "$program")
    if grep -F 'not found' <<<"$libraries" >&2; then exit 1; fi
    while read -r library; do
        [[ -e $root$library ]] || take "$library"
    done < <(grep -o '/[^ ]*' <<<"$libraries")
done

# The roots by which the certificates of gateway, broker and Redis are judged: a bundle that the package's script has made.
install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
packages+=(ca-certificates)

# Names of hosts: files first, as everywhere; the runtime adds /etc/hosts and /etc/resolv.conf.
printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$root/etc/nsswitch.conf"
printf 'root:x:0:0:root:/root:/sbin/nologin\ncapture:x:65532:65532:capture-worker:/tmp:/sbin/nologin\n' >"$root/etc/passwd"
printf 'root:x:0:\ncapture:x:65532:\n' >"$root/etc/group"
install -m 644 /etc/os-release "$root/etc/os-release"
install -d -m 1777 "$root/tmp"

for package in "${packages[@]}"; do
    mkdir -p "$root/var/lib/dpkg/status.d" "$root/usr/share/doc/$package"
    dpkg-query --status "$package" >"$root/var/lib/dpkg/status.d/$package"
    # Their licences go with them.
    cp -L "/usr/share/doc/$package/copyright" "$root/usr/share/doc/$package/"
done
