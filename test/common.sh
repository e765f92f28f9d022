# shellcheck shell=bash
# What the scripts of this folder share: arguments, Python, launch, result. Needs bash 4.2.
#
# A script sets `summary` and whatever of `shown` differs, calls parse_arguments and prepare, adds
# its own arguments of train.py to `flags`, and calls launch.
set -euo pipefail

# shellcheck disable=SC2034 # caller, kind: used by the files sourced here
caller=$PWD
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
output_root=$root/test/output

# say WORDS...: one line; names among the words cannot command the terminal. That nobody can read
# it any more (a closed terminal, a `tee` that is gone) must not end the script: its ranks would live.
say() { printf '%s\n' "${*//[[:cntrl:]]/?}" || true; }

# die STATUS WORDS...: the last line of a script that failed.
die() {
    printf '[Error] %s\n' "$(say "${@:2}")" >&2 || true # the status is to come through in any case
    exit "$1"
}

# For the time of preparation; the running training is stopped in another way.
trap 'die 130 "interrupted by SIGINT"' INT

# shellcheck source=test/python_env.sh
. "$root/test/python_env.sh"

# ---- Arguments -------------------------------------------------------------------------------------

summary="" # one sentence, by the script
names=(data_path batch_size learning_rate epochs max_steps arch config resume device device_id workers
    output)
declare -A opt=() # what the user gave
declare -A about=(
    [data_path]="folder with train/ and val/, in each a folder of images per class"
    [batch_size]="images per step, of all ranks together"
    [learning_rate]="learning rate for that batch size"
    [epochs]="epochs to train"
    [max_steps]="stop after this many training steps"
    [arch]="model name, see: python -m mobilenetv3.models"
    [config]="YAML file of train.py's options; the command line wins over it"
    [resume]="checkpoint to go on from, or auto: the newest in --output"
    [ckpt_path]="checkpoint to evaluate; --resume means the same"
    [device]="auto, npu, cuda or cpu"
    [device_id]="number of the card"
    [workers]="data loading processes, of each rank"
    [output]="run folder, which gets the checkpoints"
)
declare -A shown=( # defaults as --help tells them
    [data_path]="the built-in demo set, UCI handwritten digits"
    [device]="auto: the first of npu, cuda, cpu that works"
    [device_id]="\$ASCEND_DEVICE_ID, or 0"
    [output]="ckpt/ in the run's folder of test/output"
)
declare -A option=([learning_rate]=lr [arch]=model) # train.py's name where it is another; or none
flags=() # arguments of train.py that the script itself chooses; the user's come after and win
extra=() # what the user gave after --
declare -A after=() # the long options among that

# shellcheck source=test/nodes.sh
. "$root/test/nodes.sh"

usage() {
    local name
    printf 'usage: bash test/%s [--NAME=VALUE | --NAME VALUE]... [-- ARGUMENTS OF TRAIN.PY...]\n' \
        "${0##*/}"
    printf '%s\n\n' "$summary"
    for name in "${names[@]}"; do
        printf '  --%-14s %s%s\n' "$name" "${about[$name]}" "${shown[$name]:+ [${shown[$name]}]}"
    done
    printf '  --%-14s %s\n' help "print this"
    printf '\nThe log is test/output/<device>/train_<device>.log; an earlier one is never deleted.\n'
    printf '%s' "$notes"
}

parse_arguments() {
    local argument name value
    for argument in "$@"; do
        case $argument in
            --) break ;;
            --help | --h | -h) usage && exit 0 ;;
        esac
    done
    while (($#)); do
        case $1 in
            --)
                extra=("${@:2}")
                read_extra "${@:2}"
                return
                ;;
            --*) name=${1%%=*} ;;
            *) die 2 "unexpected argument '$1': arguments are --NAME=VALUE, see --help" ;;
        esac
        name=${name#--}
        name=${name//-/_}
        is_known "$name" || die 2 "unknown argument --$name; did you mean --$(nearest "$name")?"
        if [[ $1 == *=* ]]; then
            value=${1#*=}
        elif (($# > 1)) && [[ $2 != --* ]]; then
            value=$2
            shift
        else
            value=
        fi
        shift
        [[ -n $value ]] || die 2 "--$name needs a value: --$name=VALUE"
        check_number "$name" "$value"
        opt[$name]=$value
    done
}

# read_extra WORDS...: note the options after --, and refuse those by which the scripts themselves
# choose recipe, batch and model: what they add to the command line would win over them.
read_extra() {
    local name
    for ((; $#; )); do
        [[ $1 != -- ]] || return 0
        [[ $1 != -c* ]] || die 2 "'$1' after --: it goes before it, as --config=FILE"
        if [[ $1 =~ ^--([A-Za-z][A-Za-z0-9_-]*)(=.*)?$ ]]; then
            name=${BASH_REMATCH[1]//-/_}
            case $name in
                config) die 2 "'$1' after --: it goes before it, as --config=FILE" ;;
                data | data_path | data_dir)
                    die 2 "'$1' after --: it goes before it, as --data_path=DIR" ;;
            esac
            after[$name]=${2-}
            [[ $1 != *=* ]] || after[$name]=${1#*=}
        fi
        shift
    done
}

is_known() {
    local name
    for name in "${names[@]}"; do
        [[ $name != "$1" ]] || return 0
    done
    return 1
}

check_number() {
    case $1 in
        batch_size | epochs | max_steps | nproc | nnodes | master_port)
            [[ $2 =~ ^[1-9][0-9]*$ ]] || die 2 "--$1 is '$2'; expected a whole number from 1" ;;
        device_id | workers | node_rank | server_index | max_restarts)
            [[ $2 =~ ^(0|[1-9][0-9]*)$ ]] || die 2 "--$1 is '$2'; expected a whole number from 0" ;;
    esac
}

# nearest WORD: the argument name that the fewest edits turn WORD into.
nearest() {
    local name best="" least=999 distance
    for name in "${names[@]}"; do
        distance=$(edit_distance "$1" "$name")
        if ((distance < least)); then
            least=$distance best=$name
        fi
    done
    printf '%s' "$best"
}

# edit_distance A B (Levenshtein), one row of the table at a time.
edit_distance() {
    local a=$1 b=$2 i j corner above
    local -a row
    for ((j = 0; j <= ${#b}; j++)); do row[j]=$j; done
    for ((i = 1; i <= ${#a}; i++)); do
        corner=${row[0]}
        row[0]=$i
        for ((j = 1; j <= ${#b}; j++)); do
            above=${row[j]}
            [[ ${a:i-1:1} == "${b:j-1:1}" ]] || ((++corner))
            ((row[j] = row[j - 1] + 1))
            ((above + 1 >= row[j])) || ((row[j] = above + 1))
            ((corner >= row[j])) || ((row[j] = corner))
            corner=$above
        done
    done
    printf '%s' "${row[${#b}]}"
}

# ---- Preparation -----------------------------------------------------------------------------------

# prepare RANKS: Python, device, output folders. Sets ranks (of this node, unless the user gave
# another number), world (ranks of all nodes), cards and run_dir.
prepare() {
    settle_nodes "$1"
    choose_cards
    # shellcheck disable=SC2119 # this function's arguments are not meant
    setup_python
    check_launcher
    # shellcheck source=test/env_npu.sh
    [[ ${etp_running_flag-} == true ]] || . "$root/test/env_npu.sh"
    # A device extension whose driver is missing must not break those who do not use it.
    export TORCH_DEVICE_BACKEND_AUTOLOAD=0
    if is_demo; then
        say "no --data_path: the data is the built-in demo set (UCI handwritten digits)"
    fi
    claim_folders
    run_dir=$output_root/${cards[0]}$suffix
    say "output: $run_dir"
}

# choose_cards: the numbers of the cards (one a rank), which also name the output folders.
choose_cards() {
    local card
    if ((world > 1)); then
        [[ -z ${opt[device_id]-} ]] \
            || die 2 "--device_id is for a single rank; $ranks ranks take cards 0 to $((ranks - 1))"
        cards=()
        while ((${#cards[@]} < ranks)); do cards+=("${#cards[@]}"); done
    else
        card=${opt[device_id]:-${ASCEND_DEVICE_ID:-0}}
        [[ $card =~ ^(0|[1-9][0-9]*)$ ]] \
            || die 2 "ASCEND_DEVICE_ID is '$card'; expected the number of a card, such as 0"
        if [[ -n ${ASCEND_DEVICE_ID-} && $card != "$ASCEND_DEVICE_ID" ]]; then
            say "--device_id=$card is used; ASCEND_DEVICE_ID=$ASCEND_DEVICE_ID is ignored"
        fi
        opt[device_id]=$card
        cards=("$card")
        say "device id is $card"
    fi
    for card in "${cards[@]}"; do
        say "Device ID: $card"
    done
}

# claim_folders: make test/output/<card> for every card, or with .2, .3, ... behind the number where
# an earlier run has them. mkdir decides between runs that start at the same time; nodes that share
# this folder have names of their own, or node 0's result would lie where chance puts it.
claim_folders() {
    local number=1 card failures=0 of_node=""
    local -a claimed
    mkdir -p -- "$output_root" || die 1 "cannot make $output_root"
    ((node == 0)) || of_node=.node$node
    while :; do
        suffix=$of_node
        ((number == 1)) || suffix+=.$number
        claimed=()
        for card in "${cards[@]}"; do
            mkdir -- "$output_root/$card$suffix" 2>/dev/null || break
            claimed+=("$output_root/$card$suffix")
        done
        ((${#claimed[@]} < ${#cards[@]})) || return 0
        ((${#claimed[@]} == 0)) || rmdir -- "${claimed[@]}"
        if [[ -e $output_root/$card$suffix ]]; then
            ((++number))
        else # it may have been given up by another run just now; otherwise it cannot be made
            ((++failures < 5)) || die 1 "cannot make $output_root/$card$suffix"
        fi
    done
}

# use_recipe NAME: Ascend's recipe, for the user's own data and unless they bring a configuration.
use_recipe() {
    if [[ -z ${opt[config]-} ]] && ! is_demo; then
        flags+=("--config=$root/configs/mobilenetv3/$1.yaml")
    fi
}

# is_demo: whether the data is the built-in demo set, as far as is known without reading a file.
is_demo() { [[ -z ${opt[data_path]-}${opt[config]-} && ${after[dataset]:-demo} == demo ]]; }

# use_half_on_npu: mixed precision where nothing else chooses the precision of an NPU run.
use_half_on_npu() {
    if is_demo && is_npu; then
        flags+=(--apex --apex-opt-level=O2)
    fi
}

# is_npu: whether this run will use an Ascend NPU.
is_npu() {
    [[ ${opt[device]:-auto} == npu ]] && return
    [[ ${opt[device]:-auto} == auto ]] && compgen -G '/dev/davinci[0-9]*' >/dev/null \
        && in_root "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torch_npu"))'
}

# ---- Launch ----------------------------------------------------------------------------------------

# shellcheck source=test/supervise.sh
. "$root/test/supervise.sh"

# launch KIND SCRIPT: run train.py or validate.py on all ranks, then on node 0 print and write the
# result. KIND is what the result is about: acc, perf or eval.
launch() {
    local kind=$1 script=$root/$2 name target start=$SECONDS
    local -a command given=()
    [[ -n ${opt[output]-} || $kind == eval ]] || given+=("--output=$run_dir/ckpt")
    for name in "${names[@]}"; do
        target=${option[$name]-$name}
        [[ -z $target || -z ${opt[$name]-} ]] || given+=("--$target=${opt[$name]}")
    done
    command=("$BASH" "$root/test/rank.sh" "$PYTHON" "$script" ${flags[@]+"${flags[@]}"}
        "${given[@]}" ${extra[@]+"${extra[@]}"})
    # Threads that wait by spinning stand in the way of the data loaders, and of other programs: on two
    # busy cores that is six times slower.
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
    if ((world == 1 && ${opt[max_restarts]:-0} == 0)); then
        unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE # of a job around this one
    else
        several_ranks
    fi
    supervise "${command[@]}"
    ((node == 0)) || return 0
    (cd -- "$root" && "$PYTHON" -m mobilenetv3.report --case "$kind" \
        --seconds $((SECONDS - start)) -- "$run_dir/train_${cards[0]}.log")
}
