#!/usr/bin/env bash
# Builds the source distribution, and from that the wheel, into the directory $1 (dist). Run by make wheel; needs the
# network, from which the build gets its own tools.
set -euo pipefail
cd -P "$(dirname "$0")/.."

out=${1:-dist}
make -s -C bpf
made=packaging/made
rm -rf build "$made"
trap 'rm -rf build "$made"' EXIT
mkdir "$made"
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' qre/__init__.py)
.venv/bin/qre-tool help --man >"$made/qre-tool.8"
make -s -C kmod dkms-source DESTDIR="$PWD/$made/dkms"
mv "$made/dkms/usr/src/qre-$version" "$made/kmod"
rm -r "$made/dkms"
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)}
SOURCE_DATE_EPOCH=$epoch .venv/bin/python -m build --outdir "$out" . >/dev/null
ls -sh "$out"/qre-"$version"*
