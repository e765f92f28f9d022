"""Ascend ModelZoo's result files, and the lines that its scripts end with."""
import math
import platform
import re
from typing import List, Tuple

from mobilenetv3 import logfmt

from .logs import Log

# Ascend ModelZoo's names of its own two networks; every other model goes by its own name.
NETWORKS = {
    "mobilenetv3_large_100": "MobileNetV3-Large_ID1784_for_PyTorch",
    "mobilenetv2_100": "MobileNetV2_ID0098_for_PyTorch",
}


def case_name(run: logfmt.Run, kind: str) -> str:
    """ModelZoo's name of a result: network, global batch, ranks, kind ("acc", "perf", "eval")."""
    network = NETWORKS.get(run.model) or re.sub(r"[^\w.-]", "_", run.model) + "_for_PyTorch"
    return f"{network}_bs{run.batch_size}_{run.ranks}p_{kind}"


def case_entries(log: Log, kind: str, seconds: int) -> List[Tuple[str, str]]:
    """Keys and values of <CaseName>.log in ModelZoo's order.

    TrainingTime is milliseconds a step at the measured FPS; CompileTime the seconds of the first
    two steps, in which a device compiles its operators; ActualLoss the last printed loss.
    """
    run, is_eval = log.run, kind == "eval"
    name = case_name(run, kind)
    entries: List[Tuple[str, object]] = [
        ("Network", name[: name.rindex("_bs")]),
        ("RankSize", run.ranks),
        ("BatchSize", run.batch_size),
        ("DeviceType", platform.machine()),
        ("CaseName", name),
    ]
    if log.fps is not None and not is_eval:
        entries.append(("ActualFPS", f"{log.fps:.3f}"))
        entries.append(("TrainingTime", f"{run.batch_size * 1000 / log.fps:.3f}"))
    if log.acc1 is not None and kind != "perf":
        entries.append(("TrainAccuracy", f"{log.acc1:.3f}"))
    if log.losses and math.isfinite(log.losses[-1]):
        entries.append(("ActualLoss", f"{log.losses[-1]:.4f}"))
    entries.append(("E2ETrainingTime", seconds))
    if kind == "perf" and run.ranks == 1 and len(log.times) == 2:
        entries.append(("CompileTime", f"{sum(log.times):.3f}"))
    return [(key, str(value)) for key, value in entries]


def final_result(log: Log, kind: str, seconds: int) -> str:
    """The lines that ModelZoo's scripts end with; one that has no number is not there."""
    lines = ["------------------ Final result ------------------"]
    if log.fps is not None and kind != "eval":
        lines.append(f"Final Performance images/sec : {log.fps:.3f}")
    if log.acc1 is not None and kind != "perf":
        lines.append(f"Final Train Accuracy : {log.acc1:.3f}")
    lines.append(f"E2E Training Duration sec : {seconds}")
    return "\n".join(lines)


def check_complete(log: Log, kind: str) -> None:
    """Raise ValueError where the log lacks what a result of this kind is about."""
    if log.run is None:
        raise ValueError(f"{log.path} does not say what was run (no `=> run` line): no result")
    if kind == "perf" and log.fps is None:
        raise ValueError(
            f"{log.path} has no FPS: the run must take more than the {log.run.fps_warmup} warm-up "
            "steps that FPS leaves out"
        )
    if kind != "perf" and log.acc1 is None:
        raise ValueError(f"{log.path} has no validation accuracy (no ` * Acc@1` line): no result")
    if kind == "acc" and log.is_trained and not log.has_ended:
        raise ValueError(
            f"{log.path} stops before the end of the training (no `=> best` or `=> weights` line "
            "after its last start): no result"
        )


def write_case(log: Log, kind: str, seconds: int) -> None:
    """Write <CaseName>.log and train_<CaseName>_loss.txt beside the log."""
    entries = case_entries(log, kind, seconds)
    name = dict(entries)["CaseName"]
    text = "".join(f"{key} = {value}\n" for key, value in entries)
    losses = "".join(f"{loss:.4f}\n" for loss in log.losses)
    log.path.with_name(f"{name}.log").write_text(text, encoding="utf-8")
    log.path.with_name(f"train_{name}_loss.txt").write_text(losses, encoding="utf-8")
