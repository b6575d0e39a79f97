#!/bin/sh
# Install what Insula needs on Debian 12 or 13 or Ubuntu 24.04: system packages, a virtual environment with locked
# dependencies, and the command `insula` on the path. Does nothing, quickly, when all of it is there.
#   scripts/setup.sh          what a user needs
#   scripts/setup.sh tests    and what the tests and benchmarks need
set -eu
cd "$(dirname "$0")/.."

fail() { echo "insula set-up: $*" >&2; exit 1; }

[ "$(uname -s)" = Linux ] || fail "Insula runs on Linux; this is $(uname -s)."
[ "$(id -u)" = 0 ] || fail "containers and machines need root here; run: sudo make ${INSULA_TARGET:-up}"
command -v apt-get >/dev/null 2>&1 || fail "apt-get is missing. Insula's set-up knows Debian and Ubuntu; elsewhere install runc, conmon, nftables, QEMU, a static busybox and Python 3.11 by hand, then run: python3 -m venv .venv && .venv/bin/pip install -r requirements.lock && .venv/bin/pip install --no-deps ."

packages="runc conmon nftables libnftables1 iproute2 qemu-system-x86 qemu-utils busybox-static ca-certificates procps kmod cpio"
python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || packages="$packages python3 python3-venv"
if [ "${1:-}" = tests ]; then
    packages="$packages docker-registry"
    command -v dockerd >/dev/null 2>&1 || packages="$packages docker.io"
fi

missing=""
for package in $packages; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
done
if [ -n "$missing" ]; then
    echo "installing system packages:$missing"
    log=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive
    # A package's own service must not start here: Insula (and the tests) start what they need themselves.
    guard=/usr/sbin/policy-rc.d
    [ -e "$guard" ] || { printf '#!/bin/sh\nexit 101\n' >"$guard"; chmod 755 "$guard"; trap 'rm -f "$guard"' EXIT; }
    # shellcheck disable=SC2086
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; } >"$log" 2>&1 ||
        { tail -n 15 "$log" >&2; fail "apt-get could not install:$missing. The whole log: $log"; }
    rm -f "$log"
fi

[ -x .venv/bin/python ] || python3 -m venv .venv || fail "python3 cannot make a virtual environment; install python3-venv"
stamp=.venv/.locked-$(cat requirements.lock pyproject.toml | sha256sum | cut -c1-16)
if [ ! -e "$stamp" ]; then
    echo "installing locked Python dependencies"
    .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
    .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
    rm -f .venv/.locked-*
    : >"$stamp"
fi
if [ ! -e /usr/local/bin/insula ] || [ -L /usr/local/bin/insula ]; then
    ln -sfn "$PWD/.venv/bin/insula" /usr/local/bin/insula
else
    echo "insula set-up: /usr/local/bin/insula is not ours and was left alone; use $PWD/.venv/bin/insula" >&2
fi
