#!/bin/sh
# Fetch docker's buildx and compose plugins, which the tests drive, into a folder of the tests' own; nothing is installed.
#   scripts/cli-plugins.sh [FOLDER]      default: /var/cache/insula-tests/cli-plugins
# They are Debian packages. Debian 12 has none of its own: they are taken from Debian 13 at the mirror that this machine's
# own apt uses, through a source list and package lists that are kept apart. Ends quietly when both are there already.
set -eu
umask 022
folder=${1:-/var/cache/insula-tests/cli-plugins}
[ ! -x "$folder/docker-buildx" ] || [ ! -x "$folder/docker-compose" ] || exit 0
fail() { echo "insula set-up: $*" >&2; exit 1; }
command -v apt-get >/dev/null 2>&1 || fail "apt-get is missing: the buildx and compose plugins cannot be fetched."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/unpacked" "$folder"

compose=docker-compose
options="-o APT::Sandbox::User=root"
if apt-cache show docker-buildx >/dev/null 2>&1; then
    # Ubuntu has version 2 under another name.
    if apt-cache show docker-compose-v2 >/dev/null 2>&1; then compose=docker-compose-v2; fi
else
    mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' |
        awk '$1 == "Debian" && $NF !~ /security/ { print $NF; exit }')
    [ -n "$mirror" ] || fail "this machine's apt knows neither docker-buildx nor a Debian mirror."
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -e "$keyring" ] || fail "$keyring is missing: install debian-archive-keyring."
    echo "deb [signed-by=$keyring] $mirror trixie main" >"$work/sources.list"
    options="$options -o Dir::Etc::SourceList=$work/sources.list -o Dir::Etc::SourceParts=$work/none
        -o Dir::State::Lists=$work/lists -o Dir::Cache=$work"
    # shellcheck disable=SC2086
    apt-get $options update -qq >"$work/log" 2>&1 || { tail -n 5 "$work/log" >&2; fail "the lists of Debian 13 could not be had."; }
fi
cd "$work/archives"
# shellcheck disable=SC2086
apt-get $options download -qq docker-buildx "$compose" >"$work/log" 2>&1 ||
    { tail -n 5 "$work/log" >&2; fail "docker-buildx and $compose could not be downloaded."; }
for archive in ./*.deb; do dpkg-deb -x "$archive" "$work/unpacked"; done
for plugin in docker-buildx docker-compose; do
    found=$(find "$work/unpacked" -type f -path "*/cli-plugins/$plugin" -print -quit)
    [ -n "$found" ] || fail "the package of $plugin has no plugin of that name."
    install -m 755 "$found" "$folder/.$plugin.$$"
    mv "$folder/.$plugin.$$" "$folder/$plugin"
done
