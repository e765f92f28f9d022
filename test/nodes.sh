# shellcheck shell=bash
# Several ranks on one node or on several: where they meet, and torch's launcher; sourced by
# common.sh.
#
# Node 0 is where the ranks meet (rendezvous), and the one that prints and writes the result.

# shellcheck disable=SC2034,SC2154 # opt, about, shown, option, names, PYTHON: see common.sh

nodes=1 # of the job
node=0  # this one
cards_a_node=8
default_port=29500 # of the rendezvous of several nodes
notes=""           # at the end of --help
rendezvous=""      # where the ranks of this job meet
awaited=""         # what this node waits for before its ranks start

# on_nodes COUNT [modelzoo]: let the script run on so many nodes unless the user says otherwise, and
# with "modelzoo" take the arguments of ModelZoo's scripts for several nodes, too.
on_nodes() {
    local name own=(nproc nnodes node_rank master_addr master_port max_restarts)
    nodes=$1
    [[ ${2-} != modelzoo ]] || own+=(conf_path server_index fix_node_ip devicesnum)
    names+=("${own[@]}")
    for name in "${own[@]}"; do option["$name"]=""; done # not for train.py
    about[nproc]="ranks on each node, a card each"
    about[nnodes]="number of nodes; start the script on every one"
    about[node_rank]="number of this node, from 0; node 0 prints the result"
    about[master_addr]="address of node 0, where the ranks meet"
    about[master_port]="port there"
    about[max_restarts]="restart all ranks so many times, each time from the newest checkpoint"
    about[conf_path]="ModelZoo: folder of files server_<address>_<node>.info, one a node"
    about[server_index]="ModelZoo: number of this node, from 0"
    about[fix_node_ip]="ModelZoo: address of this node, for HCCL"
    about[devicesnum]="ModelZoo: the cards of each node, from 0, a digit each, as 01234567"
    shown[nproc]=$cards_a_node shown[nnodes]=$nodes shown[max_restarts]=0
    shown[master_port]="one node: a free one; several: $default_port"
    notes="
Several nodes: start the same command on each, with its own --node_rank; nothing is trained before
all are there. Time-outs: MNV3_RENDEZVOUS_SECONDS (900) for the nodes to meet;
-- --dist_timeout=SECONDS (1800) for a rank that waits for others while training;
HCCL_CONNECT_TIMEOUT and HCCL_EXEC_TIMEOUT for HCCL. On nodes with several networks,
GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME or HCCL_SOCKET_IFNAME chooses one. --max_restarts and --resume
on several nodes need --output=DIR, one folder that all of them see. The log of another node than 0
is test/output/<device>.node<number>/train_<device>.log.
"
}

# settle_nodes RANKS: from what the user gave to ranks (of this node), nodes, node and world (ranks
# of the job). Ends the script where something is missing or contradicts itself.
settle_nodes() {
    local resume=${after[resume]-${opt[resume]-}} output=${after[output]-${opt[output]-}}
    [[ -z ${opt[conf_path]-}${opt[server_index]-} ]] || read_conf_path
    [[ -z ${opt[fix_node_ip]-} ]] || export HCCL_IF_IP=${HCCL_IF_IP-${opt[fix_node_ip]}}
    if [[ -n ${opt[devicesnum]-} ]]; then
        # ModelZoo takes the length, whatever the text: a number (16) or a list (0,1) gives another
        # one than was meant, and 4567 other cards than the ranks take.
        [[ 0123456789abcdef == "${opt[devicesnum],,}"* ]] \
            || die 2 "--devicesnum=${opt[devicesnum]}: expected the cards of each node from 0, a" \
                "digit each (01234567 is eight); their number is given as --nproc=N"
        agree nproc "${#opt[devicesnum]}" "the length of --devicesnum"
    fi
    ranks=${opt[nproc]:-$1}
    nodes=${opt[nnodes]:-$nodes}
    world=$((nodes * ranks))
    ((nodes == 1)) || need_place
    node=${opt[node_rank]:-0}
    ((node < nodes)) \
        || die 2 "--node_rank $node does not exist among $nodes nodes (0 to $((nodes - 1)))"
    ((${opt[max_restarts]:-0} == 0)) || settle_restarts
    if [[ -n $resume && -z $output ]]; then
        ((nodes == 1)) \
            || die 2 "--resume on $nodes nodes needs --output=DIR, one folder that all of them see"
        [[ $resume != auto ]] || ((${opt[max_restarts]:-0})) \
            || die 2 "--resume=auto needs --output=DIR, the folder to go on in: without it every" \
                "run has a new one"
    fi
}

# need_place: what every node of several must be told.
need_place() {
    local name
    local -a missing=()
    for name in node_rank master_addr; do
        [[ -n ${opt[$name]-} ]] || missing+=("--$name")
    done
    ((${#missing[@]} == 0)) \
        || die 2 "$nodes nodes: missing ${missing[*]} (or ModelZoo's --conf_path and" \
            "--server_index); on one node: --nnodes=1"
}

# settle_restarts: each start goes on from what the one before has saved, the first from nothing.
settle_restarts() {
    [[ -z ${opt[resume]-} || ${opt[resume]} == auto ]] \
        || die 2 "--max_restarts goes on from the newest checkpoint in --output; with it," \
            "--resume can only be auto (got '${opt[resume]}')"
    ((nodes == 1)) || [[ -n ${opt[output]-} ]] \
        || die 2 "--max_restarts on $nodes nodes needs --output=DIR, one folder that all of them" \
            "see"
    opt[resume]=auto
}

# read_conf_path: nnodes, node_rank and master_addr from ModelZoo's server_<address>_<node>.info.
read_conf_path() {
    local folder=${opt[conf_path]-} file place address="" index=${opt[server_index]-} count=0
    [[ -n $folder ]] || die 2 "--server_index without --conf_path: the folder of server_*.info"
    [[ -n $index ]] || die 2 "--conf_path without --server_index: the number of this node, from 0"
    [[ $folder == /* ]] || folder=$caller/$folder
    for file in "$folder"/server_*_*.info; do
        [[ -e $file ]] || die 2 "--conf_path: no file server_<address>_<node>.info in $folder"
        ((++count))
        place=${file##*/server_}
        place=${place%.info}
        if [[ ${place##*_} == 0 ]]; then
            [[ -z $address ]] || die 2 "--conf_path: two files in $folder are of node 0"
            address=${place%_*}
        fi
        [[ ${place%_*} != "${opt[fix_node_ip]-}" || ${place##*_} == "$index" ]] \
            || die 2 "--server_index=$index, but ${file##*/} says that --fix_node_ip=${place%_*}" \
                "is node ${place##*_}"
    done
    [[ -n $address ]] || die 2 "--conf_path: no file server_<address>_0.info, of node 0, in $folder"
    agree nnodes "$count" "the number of files in $folder"
    agree node_rank "$index" "--server_index"
    agree master_addr "$address" "the file of node 0 in $folder"
}

# agree NAME VALUE SOURCE: take VALUE for an argument, unless the user gave another.
agree() {
    [[ ${opt[$1]:-$2} == "$2" ]] || die 2 "--$1=${opt[$1]} contradicts $3, which says $2"
    opt[$1]=$2
}

# use_batch RECIPE DEMO: the batch of all ranks, for the user's own data or for the demo, unless
# they say otherwise; and say which learning rate goes with it.
use_batch() {
    local size=$2 rate=${opt[learning_rate]:-"the configuration's"} recipe=""
    if [[ -z ${opt[config]-} ]] && ! is_demo; then
        size=$1 rate=${opt[learning_rate]:-0.064} recipe=" (the recipe is for batch 1024)"
    fi
    [[ -n ${opt[config]-} ]] || flags+=("--batch_size=$size")
    [[ -z ${opt[config]-} ]] || size="the configuration's"
    say "learning rate: $rate, for a batch of ${opt[batch_size]:-$size} over $world ranks$recipe;" \
        "it is not changed unless you ask for it: -- --scale_lr=1024"
}

# several_ranks: put torch's launcher before `command`; it starts the command once a rank.
several_ranks() {
    local address=127.0.0.1 port=${opt[master_port]-} cores restarts=${opt[max_restarts]:-0}
    local -a launcher
    ((nodes == 1)) || address=${opt[master_addr]} port=${port:-$default_port}
    choose_port
    rendezvous="$address:$port, node $node of $nodes"
    say "rendezvous: $rendezvous"
    launcher=("$PYTHON" -m torch.distributed.run "--nproc_per_node=$ranks" "--nnodes=$nodes"
        "--node_rank=$node" "--master_addr=$address" "--master_port=$port" --no_python)
    if has_torchrun; then
        launcher+=("--max_restarts=$restarts"
            "--rdzv_conf=timeout=${MNV3_RENDEZVOUS_SECONDS:-900}")
    else
        launcher[2]=torch.distributed.launch
        launcher+=(--use_env)
        export LOCAL_WORLD_SIZE=$ranks # which it does not tell
    fi
    ! compgen -v PET_ >/dev/null || unset "${!PET_@}" # torchrun's options, of a job around this one
    if ((nodes > 1 && node == 0)); then
        awaited="at $address:$port for $((nodes - 1)) more node(s) of $nodes"
    elif ((nodes > 1)); then
        awaited="for node 0 at $address:$port"
    fi
    command=("${launcher[@]}" "${command[@]}")
    cores=$(nproc 2>/dev/null || echo 1) # macOS has none
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > ranks ? cores / ranks : 1))}
    export MNV3_MAX_RESTARTS=$restarts
    # HCCL refuses cards (EJ0001) for 10 s after the ranks before were killed.
    ((restarts == 0)) || ! is_npu || export MNV3_RESTART_PAUSE=${MNV3_RESTART_PAUSE-10}
}

# check_launcher: whether the PyTorch that was found can do what is asked for.
check_launcher() {
    ((${opt[max_restarts]:-0} == 0)) || has_torchrun \
        || die 2 "--max_restarts needs torchrun, which came with PyTorch 1.9"
}

# choose_port: a free one where none is given; on node 0, whether that can be listened on.
choose_port() {
    ((node == 0)) || return 0
    port=$(in_root "$PYTHON" -c 'import errno, socket, sys
address, port = sys.argv[1], int(sys.argv[2] or 0)
with socket.socket() as free:
    free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        free.bind(("127.0.0.1" if address == "127.0.0.1" else "", port))
    except OSError as error:
        sys.exit("port %d: %s" % (port, error.strerror))
    print(free.getsockname()[1])' "$address" "$port" 2>&1) \
        || die 1 "the ranks cannot meet at $address: $port; end what uses it (ranks of an earlier" \
            "run?) or give all nodes another --master_port"
}

# has_torchrun: it came with PyTorch 1.9. Asking PyTorch itself would take seconds.
has_torchrun() {
    in_root "$PYTHON" -c 'import importlib.util, os, sys
torch = os.path.dirname(importlib.util.find_spec("torch").origin)
sys.exit(not os.path.exists(os.path.join(torch, "distributed", "run.py")))'
}
