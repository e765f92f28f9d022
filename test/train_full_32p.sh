#!/usr/bin/env bash
# Trains on 32 devices, four nodes of eight, to the last epoch: best validation Acc@1, and FPS.
# shellcheck source=test/common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

summary="Train on 32 devices, four nodes of eight, to the last epoch; node 0 prints FPS and the
best validation Acc@1. Start it on every node."
on_nodes 4 modelzoo
shown[arch]="mobilenetv3_large_100, demo: mobilenetv3_small_100"
shown[config]="configs/mobilenetv3/mobilenetv3_large_100_ascend_8p.yaml, demo: configs/demo.yaml"
shown[batch_size]="4096, demo: 128"
shown[learning_rate]="0.064, demo: see configs/demo.yaml"
shown[epochs]="600, demo: 15"
parse_arguments "$@"

prepare 8
use_recipe mobilenetv3_large_100_ascend_8p
use_batch 4096 128
use_half_on_npu
launch acc train.py
