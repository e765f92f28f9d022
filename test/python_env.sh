# shellcheck shell=bash
# Finds a Python that has what the package needs, or makes one; sourced by common.sh (root, die, say).
#
#   PYTHON=PATH          the Python to use instead of python3
#   MNV3_STACK=1.8       the PyTorch 1.8.1 stack on Python 3.8 (default: 2, the current one)
#
# A Python that has everything is used untouched. Otherwise a virtual environment is made at the
# package root: .venv, or .venv-1.8 for that stack. Where the Python has a working torch of its own
# (an NPU or GPU machine), the environment lies over it, keeps that torch and adds what is missing.
# One that was once complete is brought up to date but never removed: a run may be using it, and
# without a network it could not be made again.

# shellcheck disable=SC2154 # root, caller: see common.sh

# setup_python [REQUIREMENTS...]: set PYTHON; extra requirements are met as well as the package's.
setup_python() {
    local stack=${MNV3_STACK:-2} requirements venv base version torch key made_from
    local -a missing=()
    # A script that checked its Python has started this one.
    [[ -z ${MNV3_CHECKED_PYTHON-} || $MNV3_CHECKED_PYTHON != "${PYTHON-}" ]] || return 0

    case $stack in
        1.8) requirements=$root/1.8_requirements.txt venv=$root/.venv-1.8 ;;
        2) requirements=$root/requirements.txt venv=$root/.venv ;;
        *) die 2 "MNV3_STACK is '$stack'; expected 1.8 (PyTorch 1.8.1 on Python 3.8) or 2" ;;
    esac
    find_base
    version=$(python_version "$base")
    mapfile -t missing < <(in_root "$base" "$root/test/python_check.py" "$requirements" "$@")
    ((${#missing[@]})) || die 1 "$base cannot run test/python_check.py"
    torch=${missing[0]}
    missing=("${missing[@]:1}")
    [[ $stack == 2 || $torch == 1.8.* ]] || torch=-

    if [[ $torch != - && ${#missing[@]} == 0 ]] && torch_works "$base"; then
        PYTHON=$base
        return
    fi
    # Our own environment, activated, is brought up to date as the Python behind it would do it.
    if [[ ${base%/bin/*} -ef $venv && -f $venv/mobilenetv3-base ]]; then
        made_from=$(<"$venv/mobilenetv3-base") # PATH VERSION TORCH
        base=${made_from% * *} torch=${made_from##* }
    fi
    key=$(requirements_key "$requirements" "$@")
    if ! is_installed "$key"; then
        lock_installation
        is_installed "$key" || install "$@" # unless another script has done it meanwhile
        unlock_installation
    fi
    PYTHON=$venv/bin/python
}

# in_root COMMAND...: in the caller's folder a random.py would be taken for Python's.
in_root() { (cd -- "$root" && "$@"); }

# find_base: the Python that the user means, as an absolute path in `base`.
find_base() {
    local name=${PYTHON:-python3} candidate
    base=$(command -v -- "$name" || true)
    [[ -n $base ]] || [[ -z ${PYTHON-} && $stack == 1.8 ]] \
        || die 1 "no Python found as '$name': install Python 3.9 or newer, or set PYTHON to its path"
    [[ $base != */* || $base == /* ]] || base=$caller/$base
    version=$(python_version "$base")
    if [[ $stack == 1.8 && $version != 3.8 && -z ${PYTHON-} ]]; then
        for candidate in "$(command -v python3.8 || true)" \
            "$(pyenv root 2>/dev/null || true)"/versions/3.8.*/bin/python \
            "${PYENV_ROOT:-${HOME-}/.pyenv}"/versions/3.8.*/bin/python; do
            # A pyenv shim is there even where its Python is not chosen, hence the trial.
            [[ $(python_version "$candidate") == 3.8 ]] && base=$candidate version=3.8 && return
        done
    fi
    if [[ $stack == 1.8 && $version != 3.8 ]]; then
        die 77 "the PyTorch 1.8.1 stack needs Python 3.8, which is neither python3.8 on PATH nor" \
            "below pyenv; install it (for example: pyenv install 3.8) or set PYTHON to its path"
    fi
    case $version in
        3.8 | 3.9 | 3.[1-9][0-9]) ;;
        "") die 1 "$base does not start; set PYTHON to a Python of version 3.9 or newer" ;;
        *) die 1 "$base is Python $version, which is too old: set PYTHON to version 3.9 or newer" ;;
    esac
}

# python_version PYTHON: "3.11", or nothing where it does not start.
python_version() {
    [[ -x $1 ]] || return 0
    in_root "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

# torch_works PYTHON: really import it. torch_npu is left out: without CANN it cannot be imported.
torch_works() {
    local reason
    reason=$(TORCH_DEVICE_BACKEND_AUTOLOAD=0 in_root "$1" -c 'import torch' 2>&1 >/dev/null) \
        && return
    say "the torch $torch of $1 does not work (${reason##*$'\n'})"
    return 1
}

# requirements_key FILES...: what an environment was made from, as one line.
requirements_key() {
    printf '%s %s %s %s\n' "$base" "$version" "$torch" "$(cat -- "$@" | cksum)"
}

# is_installed KEY: whether an installation from those requirements was brought to its end.
is_installed() {
    [[ -x $venv/bin/python && -f $venv/mobilenetv3-installed ]] || return
    grep -qxF -- "$1" "$venv/mobilenetv3-installed"
}

# install [REQUIREMENTS...]: make the environment, or mend one that was left half made.
install() {
    local -a pip keys
    keys=("$(requirements_key "$requirements")" "$(requirements_key "$requirements" "$@")")
    if [[ $torch != - ]] && ! torch_works "$base"; then
        torch=-
    fi
    if [[ $torch == - && $stack == 2 && $version == 3.8 ]]; then
        die 1 "$base is Python 3.8, and the current PyTorch needs 3.9 or newer: set PYTHON to one," \
            "or MNV3_STACK=1.8 to use PyTorch 1.8.1"
    fi
    make_environment

    pip=("$venv/bin/python" -m pip install --disable-pip-version-check)
    if [[ $torch == - ]]; then
        pip+=(-r "$requirements")
    else
        # Whatever the missing packages ask for, the machine's own torch stays.
        pip+=(-c "$venv/constraints.txt" ${missing[@]+"${missing[@]}"})
    fi
    in_root "${pip[@]}" "${@/#/--requirement=}" \
        || die 1 "the installation into $venv failed, see above; run this again to go on with it"
    torch_works "$venv/bin/python" || die 1 "the installation into $venv does not work, see above"
    printf '%s\n' "${keys[@]}" >"$venv/mobilenetv3-installed"
}

# make_environment: an empty environment, over the machine's own packages if its torch is used.
make_environment() {
    local kind="$base $version $torch" earlier=""
    [[ ! -f $venv/mobilenetv3-base ]] || earlier=$(<"$venv/mobilenetv3-base")
    if [[ -e $venv && ! -f $venv/mobilenetv3-base && -n $(ls -A -- "$venv") ]]; then
        die 1 "$venv exists and was not made by this script: activate it and install" \
            "${requirements##*/} into it, or move it away"
    fi
    # Below another version than it was made with, an environment finds none of its packages.
    if [[ -f $venv/mobilenetv3-installed \
        && $earlier == *" $(python_version "$venv/bin/python") "* ]]; then
        [[ $earlier == "$kind" ]] \
            || die 1 "$venv was made from '$earlier' (Python, version, torch), and this is '$kind':" \
                "set PYTHON to that one, or move ${venv##*/} away when no run uses it"
        say "other requirements than at the last time: bringing ${venv##*/} up to date"
        : >"$venv/mobilenetv3-installed" # still there: a complete one, but for which requirements?
        return
    fi
    in_root "$base" -c 'import venv, ensurepip' 2>/dev/null \
        || die 1 "$base has no venv module: install it (Debian and Ubuntu: apt install" \
            "python$version-venv) or set PYTHON to a Python that has it"
    if [[ $torch == - ]]; then
        say "making ${venv##*/} and installing ${requirements##*/} into it (once; some minutes)"
    else
        say "$base has torch $torch, which stays; making ${venv##*/} over it with what it lacks:" \
            "${missing[*]}"
    fi
    rm -rf -- "$venv"
    { mkdir -- "$venv" && printf '%s\n' "$kind" >"$venv/mobilenetv3-base"; } \
        || die 1 "cannot make $venv: the package folder must be writable, or the Python complete"
    in_root "$base" -m venv "$venv" || die 1 "$base could not make the environment $venv"
    [[ $torch == - ]] || lay_over
}

# lay_over: let the environment see the packages of its base, which may be an environment itself.
lay_over() {
    in_root "$base" -c 'from importlib import metadata
for name in ("torch", "torchvision"):
    try:
        print(name + "==" + metadata.version(name))
    except metadata.PackageNotFoundError:
        pass' >"$venv/constraints.txt"
    in_root "$base" -c 'import os, sys
for path in sys.path:
    if os.path.isdir(path) and os.path.basename(path) in ("site-packages", "dist-packages"):
        print("import site; site.addsitedir(%r)" % path)' >"$venv/base.pth"
    mv -- "$venv/base.pth" "$(in_root "$venv/bin/python" -c \
        'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
}

# Only one script installs at a time; the others wait. Without flock a link is the lock, to the
# process id of its owner: it is never without one, nor taken away while that process lives.
lock_installation() {
    local owner wait="waiting for another installation into ${venv##*/}" lock=$venv.lock.pid
    trap unlock_installation EXIT
    if command -v flock >/dev/null; then
        exec 8>"$venv.lock" || die 1 "cannot write $venv.lock: the package folder must be writable"
        flock -n 8 || { say "$wait" && flock 8; }
        return
    fi
    until ln -sn -- "$$" "$lock" 2>/dev/null; do
        [[ -w $root ]] || die 1 "cannot make $lock: the package folder must be writable"
        owner=$(readlink -- "$lock" || true)
        [[ -z $wait || -z $owner ]] || say "$wait (process $owner; if that is none: rm $lock*)"
        [[ -z $owner ]] || wait=""
        # One takes it away at a time, and looks again: it may be another's new one by now.
        if [[ -n $owner ]] && ! is_process "$owner" && ln -sn -- "$$" "$lock.dead" 2>/dev/null; then
            [[ $(readlink -- "$lock" || true) != "$owner" ]] || rm -f -- "$lock"
            rm -f -- "$lock.dead"
        else
            sleep 1
        fi
    done
}

# is_process PID: also of another user, whom `kill -0` may not ask.
is_process() {
    ! is_alive "$1" || return 0
    ! kill -0 "$1" 2>/dev/null || return 1 # it ended, and its parent has not collected it
    [[ -d /proc/$1 ]] || ps -p "$1" >/dev/null 2>&1
}

unlock_installation() {
    trap - EXIT
    exec 8>&-
    if [[ $(readlink -- "$venv.lock.pid" 2>/dev/null) == "$$" ]]; then
        rm -f -- "$venv.lock.pid"
    fi
}
