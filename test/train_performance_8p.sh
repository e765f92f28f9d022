#!/usr/bin/env bash
# Measures training speed on eight devices of this host: a fixed number of steps, nothing validated.
# shellcheck source=test/common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

summary="Measure the training speed (FPS) of eight devices (on the CPU, eight processes) over a fixed
number of steps."
on_nodes 1
shown[arch]="mobilenetv3_large_100"
shown[config]="configs/mobilenetv3/mobilenetv3_large_100_ascend_8p.yaml, demo: configs/demo.yaml"
shown[batch_size]="1024, demo: 64"
shown[learning_rate]="0.064, demo: see configs/demo.yaml"
shown[epochs]="as many as the steps take"
shown[max_steps]="64, demo: 20"
parse_arguments "$@"

prepare 8
flags=(--max_steps=64 --epochs=1000 --skip_validation)
use_recipe mobilenetv3_large_100_ascend_8p
if is_demo; then
    flags+=(--model=mobilenetv3_large_100 --img_size=224 --batch_size=64 --max_steps=20)
fi
use_half_on_npu
launch perf train.py
