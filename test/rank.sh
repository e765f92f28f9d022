#!/usr/bin/env bash
# Runs the command of one rank: its output into the rank's log, its process id and its failure into
# files that supervise.sh watches. Started by supervise.sh itself, or by torch's launcher.
set -uo pipefail

rank=${RANK:-0}
card=${MNV3_CARD:-${LOCAL_RANK:-0}} # a single rank may be on any card
attempt=${TORCHELASTIC_RESTART_COUNT:-0}
failed=$MNV3_STATE/failed
((attempt >= MNV3_MAX_RESTARTS)) || failed+=.$attempt # and torchrun starts the ranks again
child=""

# shellcheck disable=SC2317,SC2329 # called by the traps
# Signals come from torch's launcher. Once supervise.sh stops the ranks, it alone decides how.
forward() {
    [[ -z $child || -e $MNV3_STATE/stopping ]] || kill -s "$1" "$child" 2>/dev/null
    # After a failure torchrun gives the ranks 30 s, and then kills only their rank.sh.
    ((MNV3_MAX_RESTARTS == 0)) || [[ -z $child ]] || end_child &
}

# shellcheck disable=SC2317,SC2329
end_child() {
    local tries
    for ((tries = 5 * ${MNV3_STOP_SECONDS:-10}; tries > 0; tries--)); do
        sleep 0.2
        [[ ! -e $MNV3_STATE/stopping ]] && kill -0 "$child" 2>/dev/null || return
    done
    kill -KILL -- "-$child" 2>/dev/null
}
for name in HUP INT TERM USR1; do
    # shellcheck disable=SC2064 # the name of now is meant
    trap "forward $name" "$name"
done

if read -r predecessor 2>/dev/null <"$MNV3_STATE/pid.$rank"; then
    kill -KILL -- "-$predecessor" 2>/dev/null # its rank.sh was killed before it
fi
[[ ! -e $MNV3_STATE/stopping ]] || exit 143
((attempt == 0)) || sleep "${MNV3_RESTART_PAUSE:-0}"

log=$MNV3_OUTPUT/$card$MNV3_SUFFIX/train_$card.log
[[ ${LOCAL_RANK:-0} != 0 ]] || log=$MNV3_STATE/live # a pipe, to the log and the terminal

export ASCEND_DEVICE_ID=$card
cd -- "$MNV3_CALLER" || exit # paths among the arguments are relative to it
# In a process group of its own, to be killed with its children; without `set -m` bash would also
# make it deaf to SIGINT.
set -m
"$@" </dev/null >>"$log" 2>&1 &
child=$!
set +m
printf '%s\n' "$child" >"$MNV3_STATE/pid.$rank"
[[ ! -e $MNV3_STATE/stopping ]] || kill -TERM "$child" 2>/dev/null

while kill -0 "$child" 2>/dev/null; do
    wait "$child" # comes back early when a signal was forwarded
done
wait "$child"
status=$?
if ((status)); then
    [[ -e $MNV3_STATE/stopping ]] \
        || printf '%s %s %s\n' "$rank" "$status" "$card" >>"$failed"
    kill -KILL -- "-$child" 2>/dev/null # its data loaders
fi
rm -f -- "$MNV3_STATE/pid.$rank"
exit "$status"
