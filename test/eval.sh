#!/usr/bin/env bash
# Validates a checkpoint on one device: Acc@1 over the whole validation set.
# shellcheck source=test/common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

summary="Validate a checkpoint on one device: prints Acc@1 over the whole validation set."
names=(ckpt_path resume data_path batch_size arch config device device_id workers)
about[resume]="the same as --ckpt_path"
about[ckpt_path]="checkpoint to validate (required)"
about[batch_size]="images per step"
shown[arch]="the checkpoint's"
parse_arguments "$@"

[[ ${opt[resume]:-${opt[ckpt_path]-}} == "${opt[ckpt_path]:-${opt[resume]-}}" ]] \
    || die 2 "--ckpt_path and --resume mean the same and name two checkpoints; give one"
opt[ckpt_path]=${opt[ckpt_path]:-${opt[resume]-}}
opt[resume]=""
[[ -n ${opt[ckpt_path]} ]] || die 2 "--ckpt_path=FILE is needed: the checkpoint to validate"
prepare 1
launch eval validate.py
