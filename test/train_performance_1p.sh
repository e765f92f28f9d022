#!/usr/bin/env bash
# Measures training speed on one device: a fixed number of steps, nothing validated.
# shellcheck source=test/common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

summary="Measure the training speed (FPS) of one device over a fixed number of steps."
shown[arch]="mobilenetv3_large_100"
shown[config]="configs/mobilenetv3/mobilenetv3_large_100_ascend_1p.yaml, demo: configs/demo.yaml"
shown[batch_size]="128, demo: 32"
shown[learning_rate]="0.008, demo: see configs/demo.yaml"
shown[epochs]="as many as the steps take"
shown[max_steps]="64, demo: 20"
parse_arguments "$@"

prepare 1
flags=(--max_steps=64 --epochs=1000 --skip_validation)
use_recipe mobilenetv3_large_100_ascend_1p
if is_demo; then
    flags+=(--model=mobilenetv3_large_100 --img_size=224 --batch_size=32 --max_steps=20)
fi
use_half_on_npu
launch perf train.py
