# shellcheck shell=bash
# The environment of Ascend's CANN; sourced by common.sh. Without CANN it changes nothing, and
# etp_running_flag=true skips it.
if [[ -z ${ASCEND_TOOLKIT_HOME-} && -f /usr/local/Ascend/ascend-toolkit/set_env.sh ]]; then
    set +eu # CANN's scripts read variables that are not set
    # shellcheck source=/dev/null
    . /usr/local/Ascend/ascend-toolkit/set_env.sh
    set -eu
fi
