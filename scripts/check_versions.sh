#!/usr/bin/env bash
# Run the tests under the oldest and the newest supported versions of Python and torch.
#
#   scripts/check_versions.sh                       all tests under every combination
#   scripts/check_versions.sh tests/losses -x       arguments are passed to pytest
#   COMBINATIONS="3.10:oldest 3.13:newest" scripts/check_versions.sh
#
# Every combination gets a fresh environment (about 5 GB each, deleted afterwards) in $ENVIRONMENTS,
# a temporary folder by default. A Python version that is not installed is reported as not checked.
# The exit status is 1 if any combination failed.
set -uo pipefail
cd "$(dirname "$0")/.."

combinations=${COMBINATIONS:-"3.10:oldest 3.10:newest 3.13:oldest 3.13:newest"}
oldest=$(sed -n 's/^ *torch>=\([0-9.]*\)$/\1/p' setup.cfg)
temporary=$(mktemp -d)
environments=${ENVIRONMENTS:-$temporary}
trap 'rm -rf "$temporary"' EXIT
trap 'exit 130' INT
results=()
status=0

# Find the interpreter of a version, on the PATH or in pyenv. It must run: pyenv puts shims on the PATH
# that do not.
find_python() {
    for found in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        "$found" -c '' 2>/dev/null && { echo "$found"; return; }
    done
    return 1
}

# Install the project with its tests and run them: ENVIRONMENT, torch requirement, pytest arguments.
check() {
    local environment=$1 torch=$2
    shift 2
    "$environment/bin/python" -m pip install --quiet --editable '.[dev]' "$torch" || return
    "$environment/bin/python" -m pytest "$@"
}

for combination in $combinations; do
    python=${combination%%:*}
    case ${combination##*:} in
        oldest) torch="torch==$oldest.*" ;;
        newest) torch="torch" ;;
        *) echo "COMBINATIONS: $combination: write PYTHON:oldest or PYTHON:newest" >&2; exit 2 ;;
    esac
    if ! interpreter=$(find_python "$python"); then
        results+=("not checked  Python $python, $torch: Python $python not installed")
        continue
    fi
    environment="$environments/$python-${combination##*:}"
    echo "== Python $python, $torch"
    "$interpreter" -m venv "$environment" && check "$environment" "$torch" "$@"
    code=$?
    # pytest answers Ctrl-C with 2
    [ $code = 2 ] && { rm -rf "$environment"; echo "interrupted" >&2; exit 130; }
    [ $code = 0 ] && verdict="passed      " || { verdict="FAILED ($code)  "; status=1; }
    versions=$("$environment/bin/python" -c 'import platform, torch, torchvision
print(f"Python {platform.python_version()}, torch {torch.__version__}, "
      f"torchvision {torchvision.__version__}")' 2>/dev/null)
    results+=("$verdict ${versions:-Python $python, $torch, import failed}")
    rm -rf "$environment"
done

printf '%s\n' "" "${results[@]}"
exit $status
