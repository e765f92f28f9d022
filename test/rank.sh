#!/usr/bin/env bash
# Runs the command of one rank: its output into the rank's log, its process id and its failure into
# files that supervise.sh watches. Started by supervise.sh itself, or by torch's launcher.
set -uo pipefail

rank=${RANK:-0}
card=${MNV3_CARD:-${LOCAL_RANK:-0}} # a single rank may be on any card
child=""

# shellcheck disable=SC2317,SC2329 # called by the traps
# Signals come from torch's launcher. Once supervise.sh stops the ranks, it alone decides how.
forward() {
    [[ -z $child || -e $MNV3_STATE/stopping ]] || kill -s "$1" "$child" 2>/dev/null
}
for name in HUP INT TERM; do
    # shellcheck disable=SC2064 # the name of now is meant
    trap "forward $name" "$name"
done

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
        || printf '%s %s %s\n' "$rank" "$status" "$card" >>"$MNV3_STATE/failed"
    kill -KILL -- "-$child" 2>/dev/null # its data loaders
fi
rm -f -- "$MNV3_STATE/pid.$rank"
exit "$status"
