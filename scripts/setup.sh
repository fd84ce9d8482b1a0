# Sourced by the other scripts. Defines step and fail, which print; sets $ROOT, the project's folder, and $PYTHON, a Python 3.10 or newer with the packages
# of the requirement files that are named:
#
#     source scripts/setup.sh requirements.txt [requirements-dev.txt]
#
# Uses the active virtual environment, or else creates .venv in the project. Installs only if a file has changed.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

fail() {
    echo "error: $*" >&2
    exit 1
}

step() { printf '\n== %s\n' "$*"; }

if [ -n "${VIRTUAL_ENV:-}" ]; then
    environment="$VIRTUAL_ENV"
else
    environment="$ROOT/.venv"
    if [ ! -x "$environment/bin/python" ]; then
        base=""
        for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do
            if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
                base="$candidate"
                break
            fi
        done
        [ -n "$base" ] || fail "found no Python 3.10 or newer: install one, or activate a virtual environment that has one"
        echo "== creating a virtual environment in $environment ($("$base" --version))"
        "$base" -m venv "$environment" || {
            rm -rf "$environment"
            fail "$base cannot create virtual environments: install its venv module (Debian, Ubuntu: apt install python3-venv)"
        }
    fi
fi
PYTHON="$environment/bin/python"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "$PYTHON is $("$PYTHON" --version), expected 3.10 or newer: activate another virtual environment"

for name in "$@"; do
    # The copy records what was installed. It is written only after pip succeeded.
    installed="$environment/installed-by-krgn-$name"
    if ! cmp -s "$ROOT/$name" "$installed"; then
        echo "== installing $name into $environment (torch is large: this can take minutes)"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$ROOT/$name" \
            || fail "pip could not install $name, for the reason above"
        cp "$ROOT/$name" "$installed"
    fi
done
