#!/bin/sh
# Install what Insula needs on Debian 12 or 13 or Ubuntu 24.04: system packages, a virtual environment with locked
# dependencies, and the command `insula` on the path. Does nothing, quickly, when all of it is there.
#   scripts/setup.sh          what a user needs
#   scripts/setup.sh tests    and what the tests and benchmarks need
set -eu
umask 022
cd "$(dirname "$0")/.."

need_packages_mib=1500  # QEMU and the others, with their archives
need_python_mib=1000    # the virtual environment, with what pip unpacks on the way

fail() { echo "insula set-up: $*" >&2; exit 1; }

# Refuse with a sentence where FOLDER's disk has less than MIB to give: room FOLDER MIB WHAT
room() {
    free=$(df -Pm "$1" 2>/dev/null | awk 'NR == 2 { print $4 }')
    [ "${free:-$2}" -ge "$2" ] || fail "$3 need about $2 MiB in $1, and only $free MiB are free there."
}

[ "$(uname -s)" = Linux ] || fail "Insula runs on Linux; this is $(uname -s)."
[ "$(id -u)" = 0 ] || fail "containers and machines need root here; run: sudo make ${INSULA_TARGET:-up}"
command -v apt-get >/dev/null 2>&1 || fail "apt-get is missing. Insula's set-up knows Debian and Ubuntu; elsewhere install runc, conmon, tini, nftables, iproute2, QEMU, a static busybox and Python 3.11 by hand, then run: python3 -m venv .venv && .venv/bin/pip install -r requirements.lock && .venv/bin/pip install --no-deps --no-build-isolation -e ."

# A package's own service must not start here: Insula (and the tests) start what they need themselves. An order of the
# administrator's own stays; one that a killed set-up left behind is known by its words.
guard=/usr/sbin/policy-rc.d
guard_words="# made by Insula's set-up while it installs packages"
forbid_services() {
    [ ! -e "$guard" ] || grep -qF "$guard_words" "$guard" || return 0
    trap 'rm -f "$guard"' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    printf '#!/bin/sh\n%s\nexit 101\n' "$guard_words" >"$guard"
    chmod 755 "$guard"
}

# The packages among "$@" that are not installed.
absent() {
    installed=" $(dpkg-query -W -f '${db:Status-Status}:${Package} ' "$@" 2>/dev/null || true)"
    for package in "$@"; do
        case "$installed" in *" installed:$package "*) ;; *) printf ' %s' "$package" ;; esac
    done
}

quietly() { # run a command; what it says is shown when it fails: quietly SENTENCE COMMAND...
    sentence=$1; shift
    log=$(mktemp)
    "$@" >"$log" 2>&1 || { tail -n 15 "$log" >&2; fail "$sentence The whole log: $log"; }
    rm -f "$log"
}

install_packages() {
    [ -n "$1" ] || return 0
    echo "installing system packages:$1"
    room /usr "$need_packages_mib" "the system packages"
    forbid_services
    # shellcheck disable=SC2086
    quietly "apt-get could not install:$1." env DEBIAN_FRONTEND=noninteractive \
        apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends $1
}

packages="runc conmon tini nftables libnftables1 iproute2 qemu-system-x86 qemu-utils busybox-static ca-certificates procps kmod cpio"
python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || packages="$packages python3 python3-venv"
if [ "${1:-}" = tests ]; then
    packages="$packages binutils crun curl docker-registry e2fsprogs genisoimage mmdebstrap qemu-user-static"
    command -v dockerd >/dev/null 2>&1 || packages="$packages docker.io"
fi
# shellcheck disable=SC2086
missing=$(absent $packages)
lists=$(find /var/lib/apt/lists -name '*_Packages*' -print -quit 2>/dev/null || true)
if [ -n "$missing" ] || [ -z "$lists" ]; then
    # One source of several that does not answer need not matter; whether it does shows when packages are taken from it.
    apt-get update -qq >/dev/null 2>&1 || echo "insula set-up: apt-get update failed; going on with the package lists that are here" >&2
fi
install_packages "$missing"
# In Debian 12 it comes with QEMU; later releases have a package of its own.
if [ ! -e /usr/lib/qemu/virtiofsd ] && [ ! -e /usr/libexec/virtiofsd ]; then
    install_packages " virtiofsd"
fi
# The docker command comes with dockerd in Debian 12 and Ubuntu 24.04, and by itself in Debian 13.
if [ "${1:-}" = tests ] && ! command -v docker >/dev/null 2>&1; then
    install_packages " docker-cli"
fi
# Without them the tests of BuildKit and Compose are skipped, with a sentence that says so.
if [ "${1:-}" = tests ]; then
    sh scripts/cli-plugins.sh || echo "insula set-up: going on without docker's buildx and compose plugins" >&2
fi

if ! { [ -x .venv/bin/python ] && [ -x .venv/bin/pip ]; }; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "Python 3.11 or newer is needed; $(command -v python3) is $(python3 -V 2>&1)."
    quietly "python3 cannot make a virtual environment." python3 -m venv --clear .venv
fi
stamp=.venv/.locked-$(cat requirements.lock pyproject.toml | sha256sum | cut -c1-16)
if [ ! -e "$stamp" ]; then
    echo "installing locked Python dependencies"
    room . "$need_python_mib" "the Python dependencies"
    pip=".venv/bin/python -m pip install -qq --disable-pip-version-check --no-input --root-user-action=ignore"
    quietly "pip could not install the locked dependencies." $pip --require-hashes -r requirements.lock
    quietly "pip could not install Insula itself." $pip --no-deps --no-build-isolation -e .
    # pip may be told to compile nothing, and Python to keep nothing that it compiles: then every start would compile 300 files.
    .venv/bin/python -m compileall -q -j 0 .venv/lib/python3.*/site-packages >/dev/null 2>&1 || :
    rm -f .venv/.locked-*
    : >"$stamp"
fi
# Compiled once here, so that no start compiles, not even where Python is told to write no bytecode.
.venv/bin/python -m compileall -q src/insula || fail "the sources below src/insula cannot be compiled."
if [ ! -e /usr/local/bin/insula ] || [ -L /usr/local/bin/insula ]; then
    mkdir -p /usr/local/bin
    ln -sfn "$PWD/.venv/bin/insula" /usr/local/bin/insula
else
    echo "insula set-up: /usr/local/bin/insula is not ours and was left alone; use $PWD/.venv/bin/insula" >&2
fi
