#!/bin/sh
# Make the virtual environment of `make setup`:
#   ./setup_env.sh          .venv: what serving and the demo need, on Python 3.10 to 3.12
#   ./setup_env.sh newest   .venv/newest: the same for the tests of the client and the core, on the newest Python and NumPy
#
# PYTHON=python3.11 chooses the interpreter of .venv. Without PYTHON: the first usable one of python3.12, python3.11,
# python3.10 and python3 on PATH, then those that pyenv has installed, then one that uv downloads.
#
# The stamp .venv/.serve (or .venv/.newest) is written last. An environment without its stamp is unfinished and is made
# anew; one with its stamp keeps its interpreter, and its packages are updated.
set -eu
cd "$(dirname "$0")"
pyenv=${PYENV_ROOT:-${HOME:-}/.pyenv}/versions

say() {
    echo "m2f: $*"
}

fail() {
    echo "m2f: $*" >&2
    exit 1
}

# Exit unless the server that the `server` extra installs runs on this system.
check_system() {
    advice="Here you can use the client (pip install 'm2f[client]'), or run the server in NVIDIA's Triton container."
    system="$(uname -s) $(uname -m)"
    [ "$system" = "Linux x86_64" ] || fail "the bundled server needs x86-64 Linux, and this is $system. $advice"
    libc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || libc="no glibc"
    case $libc in
        "glibc 2."[0-9] | "glibc 2."[0-2][0-9] | "glibc 2."3[0-4] | no*)
            fail "the bundled server needs glibc 2.35 or newer, and this system has $libc. $advice" ;;
    esac
}

# Passes if the running interpreter can serve; otherwise the message says why not.
CAN_SERVE='
import sys
version = "%d.%d" % sys.version_info[:2]
if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    sys.exit("is Python " + version)
try:
    import ctypes, ensurepip, os, sysconfig, venv
except ImportError:
    sys.exit("has no venv (Debian, Ubuntu: apt-get install python%s-venv)" % version)
library = "libpython%s.so.1.0" % version  # Triton runs Python models in it
for folder in (sysconfig.get_config_var("LIBDIR") or "", os.path.join(sys.base_prefix, "lib"), ""):
    try:
        ctypes.CDLL(os.path.join(folder, library))
        break
    except OSError:
        pass
else:
    sys.exit("has no %s (Debian, Ubuntu: apt-get install libpython%s)" % (library, version))
'

# Set `python` to the first of the arguments that passes the check; note in `refused` why the others do not.
find_python() {
    check=$1
    shift
    for name in "$@"; do
        path=$(command -v "$name") || continue
        status=0
        output=$("$path" -c "$check" 2>&1) || status=$?
        case $status in
            0) python=$path && return ;;
            126 | 127) ;; # a pyenv shim without its interpreter
            *) refused="${refused:+$refused, }$name $(echo "$output" | tail -n 1)" ;;
        esac
    done
    return 1
}

# Let uv download Python 3.12, and set `python` to it.
download_python() {
    uv=$(command -v uv) || {
        python3 -m venv "$scratch/uv" && "$scratch/uv/bin/pip" install --disable-pip-version-check uv || return 1
        uv=$scratch/uv/bin/uv
    }
    export UV_PYTHON_PREFERENCE=only-managed # not one that was refused
    "$uv" python install 3.12 && find_python "$CAN_SERVE" "$("$uv" python find 3.12)"
}

# Set `python` to the interpreter of .venv.
choose_python() {
    needs="the server needs Python 3.10, 3.11 or 3.12"
    if [ -n "${PYTHON:-}" ]; then
        find_python "$CAN_SERVE" "$PYTHON" || fail "$needs, and PYTHON=$PYTHON cannot be used: ${refused:-it does not start}"
        return
    fi
    find_python "$CAN_SERVE" python3.12 python3.11 python3.10 python3 "$pyenv"/3.1[012].*/bin/python3 && return
    say "$needs, and none can be used here${refused:+: $refused}; downloading Python 3.12 with uv"
    download_python >"$scratch/log" 2>&1 || fail "$needs; uv could not bring one" \
        "($(grep -i -m 1 -E "error|not created|no module" "$scratch/log"); $(tail -n 1 "$scratch/log"))." \
        "Install Python 3.12 (Fedora: dnf install python3.12; with network: uv python install 3.12) and run make again"
}

# Set `python` to the newest interpreter on PATH or of pyenv.
choose_newest() {
    set --
    for version in 3.14 3.13 3.12 3.11 3.10; do
        set -- "$@" python$version "$pyenv/$version".*/bin/python3
    done
    find_python "import ensurepip, venv" "$@" || fail "no Python 3.10 or newer with venv"
}

refused= unfinished=
scratch=$(mktemp -d)
clean_up() {
    rm -rf "$scratch"
    [ -z "$unfinished" ] || {
        rm -rf "$unfinished"
        echo "m2f: the set-up failed, see above; $unfinished was removed, and the next run starts anew" >&2
    }
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

if [ "${1:-}" = newest ]; then
    venv=.venv/newest stamp=.venv/.newest extras=models,client,video,large,convert,eval,test choose=choose_newest
else
    venv=.venv stamp=.venv/.serve extras=server,client choose=choose_python
    check_system
fi
if [ ! -e $stamp ] || ! $venv/bin/python -c "" 2>/dev/null; then
    $choose
    [ ! -e $venv ] || say "removing $venv, whose set-up did not finish"
    rm -rf $venv
    say "making $venv with $python"
    unfinished=$venv
    "$python" -m venv $venv
fi
$venv/bin/pip install --quiet --disable-pip-version-check --editable ".[$extras]"
touch $stamp
unfinished=
