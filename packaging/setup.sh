#!/usr/bin/env bash
# Makes a machine able to build, run and test QRE: Debian packages, the Python environment, the BPF program.
# Does only what is missing, asks nothing, and says what it does. Run by make; needs root only when a package is missing.
# Arguments: further lists of packages.
set -euo pipefail
cd -P "$(dirname "$0")/.."

say() { printf 'set-up: %s\n' "$*"; }
die() { printf 'set-up: %s\n' "$*" >&2; exit 2; }

missing=()
while read -r name _; do
    case "$name" in "" | "#"*) continue ;; esac
    status=$(dpkg-query -W -f '${Status}' "$name" 2>/dev/null || true)
    [ "$status" = "install ok installed" ] || missing+=("$name")
done < <(cat packaging/debian-packages.txt "$@")
if [ "${#missing[@]}" -gt 0 ]; then
    command -v apt-get >/dev/null || die "apt-get is not here; install yourself: ${missing[*]}"
    [ "$(id -u)" = 0 ] || die "packages are missing; run as root: apt-get install ${missing[*]}"
    say "installing Debian packages: ${missing[*]}"
    log=$(mktemp)
    if ! { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"; } \
        >"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "apt-get failed (its last lines are above)"
    fi
    rm -f "$log"
fi

# Its programs name its place: in a tree that was moved or copied it has to be made anew.
if ! .venv/bin/python -c 'import sys' 2>/dev/null \
    || [[ "$(grep '^command = ' .venv/pyvenv.cfg)" != *" $PWD/.venv" ]]; then
    say "making the Python environment in .venv"
    /usr/bin/python3 -m venv --clear --system-site-packages .venv
fi
if [ ! -f .venv/.installed ] || [ pyproject.toml -nt .venv/.installed ] || ! cmp -s cli/qre-tool .venv/bin/qre-tool; then
    say "installing Python packages into .venv (a minute or two the first time)"
    .venv/bin/python -m pip install -q --disable-pip-version-check -e '.[dev]' </dev/null
    touch .venv/.installed
fi
say "building the BPF program"
make -s -C bpf
say "ready"
