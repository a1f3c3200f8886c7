#!/usr/bin/env bash
# Run the plugin in the newest QGIS that Debian has: `sudo qgis_plugin/newest_qgis.sh [folder]` (make qgis-newest).
#
# Debian unstable goes into FOLDER/root (2 GB; kept and brought up to date the next time), what the algorithms write
# into FOLDER/work, the result into benchmarks/results/qgis_newest.md. Needs root, the network, debootstrap, and the
# environment that `make demo` makes (or the interpreter that GEO_MVMF_PYTHON names).
set -euo pipefail

checkout=$(cd "$(dirname "$0")/.." && pwd -P)
folder=$(realpath -m "${1:-${TMPDIR:-/tmp}/qgis-newest}")
python=${GEO_MVMF_PYTHON:-$checkout/.venv/bin/python}
root=$folder/root work=$folder/work host=$folder/root/mnt/host

fail() { echo "$*" >&2; exit 2; }
[ "$(id -u)" = 0 ] || fail "this needs root: it makes a system of its own in $folder and mounts folders into it"
command -v debootstrap >/dev/null || fail "debootstrap is missing: apt install debootstrap"
[ -x "$python" ] || fail "$python is no interpreter: run make demo first, or set GEO_MVMF_PYTHON"
case $folder/ in "$checkout"/*) fail "$folder is inside the checkout: name a folder outside" ;; esac
case $folder in *[[:space:]]*) fail "$folder: debootstrap takes no spaces" ;; esac
mkdir -p "$folder"
if [ -n "$(ls -A "$folder")" ] && [ ! -e "$folder/.qgis-newest" ]; then
  fail "$folder holds something else: name a folder that is new or empty"  # what is below is removed as needed
fi
touch "$folder/.qgis-newest"

# In a mount namespace of its own: however this ends, nothing stays mounted.
if [ -z "${QGIS_NEWEST_INSIDE:-}" ]; then
  QGIS_NEWEST_INSIDE=1 exec unshare --mount --propagation private "$0" "$folder"
fi

inside() {  # with nothing of this system's environment
  chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"
}

if [ ! -e "$root/.made" ]; then
  rm -rf --one-file-system "$root"
  mkdir -p "$root"
  debootstrap --variant=minbase --include=ca-certificates sid "$root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"}
  # A release file is valid for a week: a machine whose clock is ahead would find none.
  printf 'Acquire::Check-Valid-Until "false";\nAPT::Install-Recommends "false";\n' >"$root/etc/apt/apt.conf.d/90newest"
  touch "$root/.made"
fi
cp /etc/resolv.conf "$root/etc/resolv.conf"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
inside apt-get -qq update
inside apt-get -qq -y dist-upgrade >/dev/null
inside apt-get -qq -y install python3-qgis qgis-providers qgis >/dev/null  # qgis holds qgis_process
inside apt-get clean

# The library's Python belongs to this system: it sees this system, read-only, and what both write into, all under
# the names that they have here. So QGIS starts another system's Python, as it starts a user's own.
rm -rf --one-file-system "$work"
mkdir -p "$work" "$host" "$root$checkout" "$root$work" "$root/opt/geo-mvmf/bin"
mount --rbind / "$host"
mount -o remount,bind,ro "$host"
mount --bind "$work" "$host$work"
mount --bind "$work" "$root$work"
mount --bind "$checkout" "$root$checkout"
mount -o remount,bind,ro "$root$checkout"
cat >"$root/opt/geo-mvmf/bin/python3" <<END
#!/bin/sh
exec /usr/sbin/chroot /mnt/host "$python" "\$@"
END
chmod 755 "$root/opt/geo-mvmf/bin/python3"

inside OMP_NUM_THREADS="${OMP_NUM_THREADS:-}" python3 -B "$checkout/qgis_plugin/newest_qgis.py" "$work"
install -m 644 "$work/qgis_newest.md" "$checkout/benchmarks/results/qgis_newest.md"
cat "$checkout/benchmarks/results/qgis_newest.md"
