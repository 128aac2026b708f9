#!/usr/bin/env bash
# Builds the Debian packages qre and qre-dkms into the directory $1 (dist). Run by make deb; needs no root. The same tree
# gives the same bytes: the time in them is SOURCE_DATE_EPOCH, or else that of the last commit.
set -euo pipefail
cd -P "$(dirname "$0")/.."

out=${1:-dist}
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' qre/__init__.py)
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)}
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
tree=$room/qre-$version
mkdir "$tree"
cp -a --parents bpf cli docs kmod packaging qre supervisor workers pyproject.toml README.md CHANGELOG.md SECURITY.md \
    LICENSE "$tree"
find "$tree" \( -name __pycache__ -o -name '*.o' -o -name '*.ko' -o -name '*.mod.c' -o -name '.*.cmd' \) -prune \
    -exec rm -rf {} +
cp -a "$tree/packaging/debian" "$tree/debian"
cat >"$tree/debian/changelog" <<END
qre ($version) unstable; urgency=medium

  * See CHANGELOG.md.

 -- $(sed -n 's/^Maintainer: //p' packaging/debian/control)  $(LC_ALL=C date -u -R -d "@$epoch")
END
echo "building the packages (their log: $out/build.log)"
mkdir -p "$out"
if ! (cd "$tree" && umask 022 && SOURCE_DATE_EPOCH=$epoch dpkg-buildpackage --build=binary -us -uc) \
    >"$out/build.log" 2>&1; then
    tail -n 20 "$out/build.log" >&2
    exit 1
fi
rm -f "$out"/qre_*.deb "$out"/qre-dkms_*.deb
mv "$room"/*.deb "$out"
ls -sh "$out"/*.deb
