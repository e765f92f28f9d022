#!/usr/bin/env bash
# Trains on eight devices of this host to the last epoch: best validation Acc@1, and FPS.
# shellcheck source=test/common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

summary="Train on eight devices to the last epoch (on the CPU, eight processes); prints FPS and the
best validation Acc@1."
on_nodes 1
shown[arch]="mobilenetv3_large_100, demo: mobilenetv3_small_100"
shown[config]="configs/mobilenetv3/mobilenetv3_large_100_ascend_8p.yaml, demo: configs/demo.yaml"
shown[batch_size]="1024, demo: see configs/demo.yaml"
shown[learning_rate]="0.064, demo: see configs/demo.yaml"
shown[epochs]="600, demo: 15"
parse_arguments "$@"

prepare 8
use_recipe mobilenetv3_large_100_ascend_8p
use_half_on_npu
launch acc train.py
