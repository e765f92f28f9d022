#!/usr/bin/env bash
# Trains on one device to the last epoch: best validation Acc@1, and FPS.
# shellcheck source=test/common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

summary="Train on one device to the last epoch; prints FPS and the best validation Acc@1."
shown[arch]="mobilenetv3_large_100, demo: mobilenetv3_small_100"
shown[config]="configs/mobilenetv3/mobilenetv3_large_100_ascend_1p.yaml, demo: configs/demo.yaml"
shown[batch_size]="128, demo: see configs/demo.yaml"
shown[learning_rate]="0.008, demo: see configs/demo.yaml"
shown[epochs]="600, demo: 15"
parse_arguments "$@"

prepare 1
use_recipe mobilenetv3_large_100_ascend_1p
use_half_on_npu
launch acc train.py
