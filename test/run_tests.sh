#!/usr/bin/env bash
# Sets up Python as the other scripts do, and runs all tests.
# shellcheck source=test/common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'END'
usage: bash test/run_tests.sh [--stack=1.8] [ARGUMENTS OF PYTEST...]
Run the test suite; without files among the arguments, all of test/unit and test/e2e.

  --stack=1.8  use PyTorch 1.8.1 on Python 3.8; exit status 77 where there is no Python 3.8
  --help       print this; pytest's own: python -m pytest --help
END
}

selected=(test/unit test/e2e)
arguments=()
while (($#)); do
    case $1 in
        --help | --h | -h) usage && exit 0 ;;
        --stack=*) export MNV3_STACK=${1#*=} ;;
        --stack)
            (($# > 1)) || die 2 "--stack needs a value: --stack=1.8"
            export MNV3_STACK=$2
            shift
            ;;
        -k | -m | -n | -p | -o) # their value is no path, even where one is called so
            arguments+=("$1")
            (($# < 2)) || { arguments+=("$2") && shift; }
            ;;
        -*) arguments+=("$1") ;;
        *)
            if [[ -e ${1%%::*} ]]; then
                selected=()
                [[ $1 == /* ]] || set -- "$caller/$1" "${@:2}"
            fi
            arguments+=("$1")
            ;;
    esac
    shift
done
setup_python "$root/test/requirements.txt"
export PYTHON MNV3_CHECKED_PYTHON=$PYTHON
# Several processes run at once in the tests; each with a thread per core would stand in each
# other's way.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Two at a time: more would let the tests that start eight ranks wait for each other.
cores=$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 1) # nproc heeds that variable
if ((cores > 1)); then
    arguments=(-n 2 --dist=loadfile ${arguments[@]+"${arguments[@]}"})
fi
say "testing with $("$PYTHON" -V), $PYTHON"
cd -- "$root"
exec "$PYTHON" -m pytest ${selected[@]+"${selected[@]}"} ${arguments[@]+"${arguments[@]}"}
