#!/bin/sh
# Make .venv if it is not there and bring it in line with the locks. Prints nothing when there is nothing to do.
# PYTHON names the interpreter to use; without it the first fitting one on the PATH is taken.
set -eu
cd "$(dirname "$0")/.."

fits() { # A shim on the PATH may name a version that is not there, so every candidate is run.
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1
}

makes_environments() {
    "$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

fitting=
chosen=
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.14 python3.11}; do
    fits "$candidate" || continue
    fitting=${fitting:-$candidate}
    if makes_environments "$candidate"; then
        chosen=$candidate
        break
    fi
done

if .venv/bin/python -c 'import pip' >/dev/null 2>&1 && fits .venv/bin/python; then
    : # there already, and whole
elif [ -n "$chosen" ]; then
    echo "Making .venv with $("$chosen" --version)"
    "$chosen" -m venv --clear .venv
elif [ -n "$fitting" ]; then
    version=$("$fitting" -c 'import sys; print("{}.{}".format(*sys.version_info[:2]))')
    echo "error: $fitting has no venv and ensurepip modules, so no environment can be made." >&2
    echo "remedy: on Debian and Ubuntu, apt-get install python$version-venv; then run the command again." >&2
    exit 1
else
    found=$(${PYTHON:-python3} --version 2>&1 || true)
    echo "error: Python 3.11 to 3.14 is needed; ${PYTHON:-python3} says: ${found:-nothing}" >&2
    echo "remedy: install one (Debian, Ubuntu: apt-get install python3.12 python3.12-venv)," >&2
    echo "        or name it: make PYTHON=/path/to/python3.12 ..." >&2
    exit 1
fi

exec .venv/bin/python tools/install.py
