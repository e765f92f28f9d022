#!/usr/bin/env bash
# Measures training speed on 32 devices, four nodes of eight: a fixed number of steps.
# shellcheck source=test/common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

summary="Measure the training speed (FPS) of 32 devices, four nodes of eight, over a fixed
number of steps; node 0 prints it. Start it on every node."
on_nodes 4 modelzoo
shown[arch]="mobilenetv3_large_100"
shown[config]="configs/mobilenetv3/mobilenetv3_large_100_ascend_8p.yaml, demo: configs/demo.yaml"
shown[batch_size]="4096, demo: 256"
shown[learning_rate]="0.064, demo: see configs/demo.yaml"
shown[epochs]="as many as the steps take"
shown[max_steps]="64, demo: 20"
parse_arguments "$@"

prepare 8
flags=(--max_steps=64 --epochs=1000 --skip_validation)
use_recipe mobilenetv3_large_100_ascend_8p
if is_demo; then
    flags+=(--model=mobilenetv3_large_100 --img_size=224 --max_steps=20)
fi
use_batch 4096 256
use_half_on_npu
launch perf train.py
