#!/usr/bin/env bash
# Makes a machine able to build, run and test QRE: Debian packages, the Python environment, the BPF program.
# Does only what is missing, asks nothing, and says what it does. Run by make; needs root only when a package is missing.
# Arguments: needs (demo, check, tests, bench, dist) besides what running it takes, and further lists of packages (*.txt).
set -euo pipefail
cd -P "$(dirname "$0")/.."

say() { printf 'set-up: %s\n' "$*"; }
die() { printf 'set-up: %s\n' "$*" >&2; exit 2; }

needs=(runtime optional build)
extras=()
lists=()
for word in "$@"; do
    case "$word" in
        demo | check | tests) needs+=("$word") extras+=("$word") ;;
        bench | dist) extras+=("$word") ;;
        *.txt) lists+=("$word") ;;
        *) die "$word is not one of demo, check, tests, bench, dist, and not a list of packages (*.txt)" ;;
    esac
done

# The names of packaging/debian-packages.txt that one of the needs brings, and all names of the other lists.
wanted() {
    local name whose need
    while read -r name whose _; do
        case "$name" in "" | "#"*) continue ;; esac
        for need in "${needs[@]}"; do
            case ",${whose%:}," in *",$need,"*) echo "$name" && break ;; esac
        done
    done <packaging/debian-packages.txt
    [ "${#lists[@]}" = 0 ] || sed '/^#/d; /^$/d; s/ .*//' "${lists[@]}"
}

missing=()
while read -r name; do
    status=$(dpkg-query -W -f '${Status}' "$name" 2>/dev/null || true)
    [ "$status" = "install ok installed" ] || missing+=("$name")
done < <(wanted)
if [ "${#missing[@]}" -gt 0 ]; then
    command -v apt-get >/dev/null || die "apt-get is not here; install yourself: ${missing[*]}"
    [ "$(id -u)" = 0 ] || die "packages are missing; run as root: apt-get install ${missing[*]}"
    say "installing Debian packages: ${missing[*]}"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    apt() {
        DEBIAN_FRONTEND=noninteractive apt-get -q "$@" >"$work/log" 2>&1 </dev/null && return
        tail -n 20 "$work/log" >&2
        die "apt-get failed (its last lines are above)"
    }
    apt update
    unknown=()
    for name in "${missing[@]}"; do
        apt-cache show "$name" >/dev/null 2>&1 || unknown+=("$name")
    done
    # The newer kernel comes with Debian's security updates, which debootstrap leaves out: for this once, beside the
    # archive that is there.
    parts=()
    if [ "${#unknown[@]}" -gt 0 ]; then
        updates=$(apt-cache policy | sed -n 's#^ *[0-9]* \([^ ]*\)/debian \([a-z]*\)/main .*#\1/debian-security \2-security#p' | head -n 1)
        [ -n "$updates" ] || die "apt does not know ${unknown[*]}: add Debian's security updates to its sources"
        say "with Debian's security updates, for ${unknown[*]}"
        cp -r /etc/apt/sources.list.d "$work/parts" 2>/dev/null || mkdir "$work/parts"
        echo "deb $updates main" >"$work/parts/qre-security-updates.list"
        parts=(-o "Dir::Etc::SourceParts=$work/parts")
        apt "${parts[@]}" update
    fi
    apt "${parts[@]}" install -y --no-install-recommends "${missing[@]}"
fi

python=.venv/bin/python
home=$(sed -n 's/^command = .* -m venv \(--[a-z-]* \)*\//\//p' .venv/pyvenv.cfg 2>/dev/null || true)
# Its programs (pytest, ruff, …) name the place where they were made; nothing else of it does.
if [ -n "$home" ] && [ "$home" != "$PWD/.venv" ]; then
    if [[ "$PWD" = *[[:space:]]* || ${#PWD} -gt 200 ]]; then
        home= # no first line of a script can name such an interpreter: pip knows what to do instead
    else
        say "this tree was at ${home%/.venv}: repairing the Python environment"
        "$python" -I packaging/moved_venv.py .venv "$PWD/.venv" || home=
    fi
fi
if [ -z "$home" ] || ! "$python" -c 'import sys' 2>/dev/null; then
    say "making the Python environment in .venv"
    /usr/bin/python3 -m venv --clear --system-site-packages .venv
fi
# .installed: the extras that are there.
for extra in "${extras[@]}"; do
    grep -qsx "$extra" .venv/.installed || fresh=no
done
if [ ! -f .venv/.installed ] || [ pyproject.toml -nt .venv/.installed ] || [ "${fresh:-}" = no ] \
    || ! cmp -s cli/qre-tool .venv/bin/qre-tool; then
    all=$({ printf '%s\n' "${extras[@]}"; cat .venv/.installed 2>/dev/null || true; } | sort -u | sed '/^$/d')
    rm -f .venv/.installed # until it is whole
    say "installing Python packages into .venv (a minute or two the first time)"
    "$python" -m pip install -q --disable-pip-version-check -e ".${all:+[$(paste -sd , <<<"$all")]}" </dev/null
    # This tree, wherever it will be moved to: such a line is read as seen from its file.
    for place in .venv/lib/python3*/site-packages/__editable__.qre-*.pth; do echo ../../../.. >"$place"; done
    printf '%s\n' "$all" >.venv/.installed
fi
say "building the BPF program"
make -s -C bpf
say "ready"
