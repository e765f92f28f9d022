# shellcheck shell=bash
# Runs ranks to their end, whatever that is; sourced by common.sh.
#
# A folder `state` connects this process with rank.sh, one per rank, which torch's launcher starts:
#   pid.<rank>   process id of a running rank
#   failed       "rank status card" of ranks that failed by themselves, in the order of failing
#   failed.<n>   the same of the n-th start (from 0), after which torchrun starts them again
#   stopping     there when the ranks are being stopped
#   live         pipe with rank 0's output
#   tellers      process ids of the script's own messages, of which the terminal may not take some
#   said, errors what the script has yet to say where the terminal does not read

# shellcheck disable=SC2154 # world, cards, suffix, run_dir, root, caller, awaited: see common.sh

stop_seconds=${MNV3_STOP_SECONDS:-10}           # from the wish to end to SIGKILL, after a failure
interrupt_seconds=${MNV3_INTERRUPT_SECONDS:-60} # the same after a signal: time for a checkpoint
terminal_seconds=${MNV3_TERMINAL_SECONDS:-10}   # for a terminal that stalls to take the last lines
# Besides Ctrl-C and a closed terminal: what clusters send before they end a job. The ranks get them
# from here: of torch's launchers that of 1.8 kills its ranks at any signal, and torchrun dies of USR1.
signals=(HUP INT TERM USR1)
interrupted=""
interrupted_at=0 # centiseconds
launcher=""
restart=0 # how often torchrun has started the ranks again

# supervise COMMAND...: run it (one rank, or a launcher) until nothing of it is left. Comes back only
# if all ranks succeeded; otherwise says which failed first and exits with its status.
supervise() {
    local log=$run_dir/train_${cards[0]}.log display name status=0
    start_state
    mkfifo -- "$state/live"
    exec 9<>"$state/live" # or the pipe ends with the first rank 0, and there may be more of them
    for name in "${signals[@]}"; do
        # shellcheck disable=SC2064 # the name of now is meant
        trap "interrupt $name" "$name"
    done
    trap : PIPE # of our own messages; unlike '' it is not handed on to the ranks
    # Ctrl-C reaches the foreground process group, that is this script alone; it passes it on, once.
    set -m
    start_display
    # Not in the caller's folder: a random.py there would be taken for Python's.
    (cd -- "$root" && exec "$@") >"$state/launcher.log" 2>&1 </dev/null 9>&- &
    launcher=$!
    set +m
    watch
    if is_alive "$launcher"; then
        status=1 # not even SIGKILL ended it
    else
        wait "$launcher" || status=$?
    fi
    drain
    conclude "$status"
    trap - "${signals[@]}" PIPE
}

# start_display: rank 0's output goes to the log and the terminal. Call it under `set -m`.
start_display() {
    "$PYTHON" -I -S "$root/test/display.py" "$log" <"$state/live" 9>&- &
    display=$!
}

start_state() {
    state=$(mktemp -d "${TMPDIR:-/tmp}/mobilenetv3.XXXXXXXX")
    trap 'rm -rf -- "$state"' EXIT
    export MNV3_STATE=$state MNV3_OUTPUT=$output_root MNV3_SUFFIX=$suffix MNV3_CALLER=$caller
    export MNV3_MAX_RESTARTS=${opt[max_restarts]:-0} PYTHONUNBUFFERED=1
    unset MNV3_CARD
    ((world > 1)) || export MNV3_CARD=${cards[0]}
}

# watch: until launcher and ranks are gone. After a failure torch's launcher itself takes up to 30 s
# and leaves behind what does not listen, so the ranks are stopped from here.
watch() {
    deadline=$((1 << 62))
    while is_alive "$launcher" || is_any_rank_alive; do
        pause 0.2
        tell_progress
        if ! is_alive "$display"; then # rank 0 would wait for ever for room in the pipe
            set -m
            start_display
            set +m
        fi
        if [[ ! -e $state/stopping ]]; then
            if [[ -s $state/failed ]]; then
                # The record of a killed rank may come in after those of the peers who noticed.
                ((world == 1)) || pause 1
                stop_ranks TERM "$stop_seconds"
            elif ! is_alive "$launcher" && is_any_rank_alive; then
                stop_ranks TERM "$stop_seconds"
            fi
        elif ((MNV3_MAX_RESTARTS)) && ! is_any_rank_alive; then
            kill -s TERM "$launcher" 2>/dev/null || true # or it starts them again
        fi
        if ((SECONDS >= deadline)); then
            kill_ranks
            ((SECONDS < deadline + 3)) || kill -KILL -- "-$launcher" 2>/dev/null || true
        fi
        ((SECONDS < deadline + 10)) || break
    done
}

# tell_progress: what a person at the terminal would otherwise not know.
tell_progress() {
    local rank status card
    if [[ -n $awaited ]]; then
        if compgen -G "$state/pid.*" >/dev/null; then
            awaited=""
        elif ((SECONDS >= ${next_note:=0})); then
            tell 1 "waiting $awaited"
            next_note=$((SECONDS + 30))
        fi
    fi
    if [[ -s $state/failed.$restart && ! -e $state/stopping ]]; then
        pause 1 # as in `watch`
        read -r rank status card < <(first_failure "failed.$restart")
        ((++restart))
        tell 2 "rank $rank $(describe "$status"): restart $restart of $MNV3_MAX_RESTARTS, from the" \
            "newest checkpoint; its log: $output_root/$card$suffix/train_$card.log"
    fi
}

# tell STREAM WORDS...: say it while ranks run, whom a terminal that stalls must not leave unwatched.
# The shell around it keeps $! as it is for `pause`, in the middle of which a signal may come.
tell() {
    (
        say "${@:2}" >&"$1" 9>&- &
        printf '%s\n' "$!" >>"$state/tellers"
    )
}

pause() {
    sleep "$1" &
    wait "$!" || true # a signal is dealt with at once, not after the sleep
}

# interrupt NAME: the first signal asks the ranks to end, the second makes them. One wish may come
# twice: `timeout` signals its child and then the child's group, a closing terminal the foreground
# group after the shell has done so.
interrupt() {
    if [[ -z $interrupted ]]; then
        interrupted=$1 interrupted_at=$(centiseconds)
        stop_ranks "$1" "$interrupt_seconds"
        tell 2 "SIG$1: stopping the run; once more stops it at once"
    elif [[ $1 != HUP ]] && (($(centiseconds) - interrupted_at > 30)); then
        deadline=$SECONDS
        kill_ranks
    fi
}

# centiseconds: on a clock that nobody sets.
centiseconds() {
    local up=$SECONDS.00
    read -r up _ 2>/dev/null </proc/uptime || true
    printf '%s' "$((10#${up/./}))"
}

# stop_ranks SIGNAL SECONDS: ask all ranks to end, and give them that long.
stop_ranks() {
    local pid
    : >"$state/stopping"
    deadline=$((SECONDS + $2))
    is_any_rank_alive || kill -s TERM "$launcher" 2>/dev/null || true # still starting
    for pid in $(rank_pids); do
        kill -s "$1" "$pid" 2>/dev/null || true
    done
}

rank_pids() { cat -- "$state"/pid.* 2>/dev/null || true; }

kill_ranks() {
    local pid
    for pid in $(rank_pids); do
        kill -KILL -- "-$pid" 2>/dev/null || true
    done
}

is_any_rank_alive() {
    local pid
    for pid in $(rank_pids); do
        ! is_alive "$pid" || return 0
    done
    return 1
}

# is_alive PID: it runs; one that ended and was not collected by its parent does not.
is_alive() {
    local stat=""
    kill -0 "$1" 2>/dev/null || return 1 # alone, in a trap, it would return the status from before
    read -r stat 2>/dev/null <"/proc/$1/stat" || return 0
    [[ ${stat##*) } != Z* ]]
}

# drain: wait for the display to have shown everything; a pipe that an orphan holds does not end, and
# a terminal that stalls does not take it. The log has everything by then.
drain() {
    local end=$((SECONDS + 3)) teller
    if ! is_alive "$display"; then # killed with the last rank: the rest is in the pipe
        set -m
        start_display
        set +m
    fi
    exec 9>&-
    while is_alive "$display" && ((SECONDS < end)); do
        pause 0.05
    done
    while read -r teller; do
        ! is_alive "$teller" || kill -KILL "$teller" 2>/dev/null || true
    done < <(cat -- "$state/tellers" 2>/dev/null)
    is_alive "$display" || return 0
    disown "$display" 2>/dev/null || true # or bash tells that it was killed
    kill -KILL "$display" 2>/dev/null || true
    # The last lines would wait for the terminal, too.
    exec 7>&1 8>&2 >"$state/said" 2>"$state/errors"
    printf '\n' || true # it was cut inside of a line
    say "[...] the whole output: $log"
    trap 'hand_over; rm -rf -- "$state"' EXIT
}

# hand_over: give a terminal that stalled the time to take the last lines, but end in any case.
hand_over() {
    local tries said errors
    cat -- "$state/said" >&7 2>/dev/null &
    said=$!
    cat -- "$state/errors" >&8 2>/dev/null &
    errors=$!
    for ((tries = 10 * terminal_seconds; tries > 0; tries--)); do
        is_alive "$said" || is_alive "$errors" || return 0
        pause 0.1
    done
    kill -KILL "$said" "$errors" 2>/dev/null || true
}

# conclude STATUS: come back only from a run whose ranks all succeeded.
conclude() {
    local rank status card log="$output_root/${cards[0]}$suffix/train_${cards[0]}.log"
    if (($1 && restart)) && [[ ! -s $state/failed ]]; then # the launcher did not start them again
        cp -- "$state/failed.$((restart - 1))" "$state/failed"
    fi
    if [[ -n $interrupted ]]; then
        die $((128 + $(kill -l "$interrupted"))) "interrupted by SIG$interrupted; log: $log"
    elif [[ -s $state/failed ]]; then
        read -r rank status card < <(first_failure)
        log=$output_root/$card$suffix/train_$card.log
        if grep -qs EJ0001 -- "$log"; then
            say "HCCL's EJ0001: ranks of an earlier run still hold the cards. End them (npu-smi" \
                "info shows them) and wait 10 s." >&2
        fi
        if ((world == 1)); then
            die "$status" "the run $(describe "$status"); log: $log"
        elif is_interrupt "$status"; then # all of them ended their step, and saved
            die "$status" "the run $(describe "$status"), which reached rank $rank; its log: $log"
        fi
        ((card == cards[0])) || { # that one was shown as it ran
            printf '\n---- last lines of rank %s ----\n' "$rank"
            tail -n 20 -- "$log"
        } >&2 || true # as in `say`
        ((nodes == 1)) \
            || say "rendezvous: $rendezvous. A time-out or a lost connection is most often another" \
                "node's fault, or the network's: see also the last lines of the other nodes." >&2
        die "$status" "rank $rank failed first: it $(describe "$status"); its log: $log"
    elif (($1)) && [[ -n $awaited ]]; then
        tail -n 20 -- "$state/launcher.log" >&2 || true
        die "$1" "the nodes did not meet: this one, $node of $nodes, waited $awaited"
    elif (($1)); then
        tail -n 20 -- "$state/launcher.log" >&2 || true
        die "$1" "the launcher of the ranks $(describe "$1"); log: $log"
    fi
}

# first_failure: the rank that began it. The peers of a rank that was killed (by hand, for lack of
# memory, by a fault in a library) fail a moment later, and may be recorded before it.
first_failure() {
    local file=$state/${1-failed}
    grep -m 1 -E '^[0-9]+ (132|135|136|137|139) ' -- "$file" || head -n 1 -- "$file"
}

# is_interrupt STATUS: of a rank that was asked to end, by another than this script.
is_interrupt() {
    local name
    for name in "${signals[@]}"; do
        (($1 != 128 + $(kill -l "$name"))) || return 0
    done
    return 1
}

# describe STATUS
describe() {
    if is_interrupt "$1"; then
        printf 'was interrupted by SIG%s' "$(kill -l $(($1 - 128)))"
    elif (($1 == 137)); then
        printf 'was killed by SIGKILL (if nobody did, memory ran out)'
    elif (($1 > 128)) && kill -l $(($1 - 128)) >/dev/null 2>&1; then
        printf 'was ended by SIG%s' "$(kill -l $(($1 - 128)))"
    else
        printf 'failed with exit status %s' "$1"
    fi
}
