# shellcheck shell=bash
# The environment of Ascend's CANN; sourced by common.sh, or by hand: source test/env_npu.sh
#
# CANN is looked for where ASCEND_TOOLKIT_HOME, ASCEND_HOME_PATH or ASCEND_HOME say, where its
# installation is on record, and in the usual folders; mobilenetv3/host.py looks likewise. Variables
# that the user has set stay as they are. No card, service or limit of the host is changed. Where
# there is no CANN nothing happens, and etp_running_flag=true skips all of it.

# Functions, and unset at the end: in the shell that sources this, only exported variables are left.
_mnv3_cann() {
    local script=""
    # What was last sourced stays, also where it is not what would be found here.
    if ! _mnv3_cann_is_sourced; then
        _mnv3_find_cann
        if [[ -z $script ]]; then
            ! compgen -G '/dev/davinci[0-9]*' >/dev/null || printf '%s\n' \
                "note: this host has Ascend cards, but CANN was not found: install its toolkit, or" \
                "      set ASCEND_HOME_PATH to its folder" >&2
            return 0
        fi
        _mnv3_load_cann
        printf 'CANN: %s\n' "$script"
    fi

    # Launching the many small operators is what takes a MobileNet's time; 2 spreads it over two
    # threads better than the default, 1.
    export TASK_QUEUE_ENABLE=${TASK_QUEUE_ENABLE-2}
    # Each rank on its own share of the CPUs, and hands off the host's interrupts. A single rank would
    # be held on one card's share, and its data loading with it.
    ((${ranks-1} < 2)) || export CPU_AFFINITY_CONF=${CPU_AFFINITY_CONF-1,bind_irq:0}
    # Seconds. The first steps of the ranks may be minutes apart, for compiling operators.
    export HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT-1200}
    # Below the 1800 of the process group, so that HCCL speaks first: it names the peer. 25 x 68, in
    # which older chips count.
    export HCCL_EXEC_TIMEOUT=${HCCL_EXEC_TIMEOUT-1700}
    export ASCEND_GLOBAL_LOG_LEVEL=${ASCEND_GLOBAL_LOG_LEVEL-3} # errors only
}

# Whether CANN's home is in the library path already.
_mnv3_cann_is_sourced() {
    local home
    for home in "${ASCEND_TOOLKIT_HOME-}" "${ASCEND_HOME_PATH-}"; do
        [[ -d $home ]] || continue
        home=${home%/}
        [[ :${LD_LIBRARY_PATH-} != *":$home/"* ]] || return 0
        home=$(cd -P -- "$home" && pwd)
        [[ :${LD_LIBRARY_PATH-} != *":$home/"* ]] || return 0
    done
    return 1
}

# Set `script` to the path of CANN's set_env.sh.
_mnv3_find_cann() {
    local root file line key folder
    local -a roots=("${ASCEND_TOOLKIT_HOME-}" "${ASCEND_HOME_PATH-}" "${ASCEND_HOME-}")
    for file in /etc/Ascend/ascend_cann_install.info ~/Ascend/ascend_cann_install.info; do
        [[ -r $file ]] || continue
        while read -r line || [[ -n $line ]]; do
            key=${line%%=*}
            [[ $key != *Install_Path && $key != *InstallPath ]] || roots+=("${line#*=}")
        done <"$file"
    done
    roots+=(/usr/local/Ascend ~/Ascend)
    for root in "${roots[@]}"; do
        root=${root%$'\r'}
        root=${root%/}
        [[ -n $root ]] || continue
        folder=${root%/*}
        case ${folder##*/} in
            cann | ascend-toolkit | nnae) ;; # root is .../ascend-toolkit/latest
            *) folder=$root ;;
        esac
        # Since CANN 8.5; before; the edition without compilers.
        for folder in "$root" "$root/cann" "$root/ascend-toolkit" "$root/nnae" "$folder"; do
            if [[ -f $folder/set_env.sh ]]; then
                script=$folder/set_env.sh
                return
            fi
        done
    done
}

# Take over what CANN's script exports. It runs in a shell of its own, because it reads variables
# that are not set, and some versions end the shell at their first error.
_mnv3_load_cann() {
    local pair name value libraries=${LD_LIBRARY_PATH-} modules=${PYTHONPATH-}
    # shellcheck disable=SC2016 # the variables of that other shell are meant
    while IFS= read -r -d '' pair; do
        name=${pair%%=*} value=${pair#*=}
        [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ && ${!name-} != "$value" ]] || continue
        case $name in
            _ | SHLVL | PWD | OLDPWD | SHELLOPTS | BASHOPTS | MNV3_ENV) ;;
            *) export "$name=$value" ;;
        esac
    done < <(MNV3_ENV=$(type -P env) "$BASH" -c \
        'trap "\"\$MNV3_ENV\" -0" EXIT; . "$0" >&2' "$script" </dev/null)
    # It puts a colon before what was empty. That would let Python and the loader of libraries look
    # into the current folder.
    [[ -n $libraries || ${LD_LIBRARY_PATH-} != *: ]] || export LD_LIBRARY_PATH=${LD_LIBRARY_PATH%:}
    [[ -n $modules || ${PYTHONPATH-} != *: ]] || export PYTHONPATH=${PYTHONPATH%:}
}

[[ ${etp_running_flag-} == true ]] || _mnv3_cann
unset -f _mnv3_cann _mnv3_cann_is_sourced _mnv3_find_cann _mnv3_load_cann
