"""Whether mixed precision, averaging and interrupting change what a fine-tuning reaches.

A network is trained on five of the classes, and from its weights on the other five, several times
over: in float32, at level O2, with a moving average, and stopped by a signal and resumed.
"""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List

import processes

ROOT = Path(__file__).resolve().parents[1]
BASE_EPOCHS, EPOCHS = 6, 6
COMMON = ["--model", "mobilenetv3_small_100", "--stem_stride", 1, "--img_size", 32, "--crop_pct", 1,
          "--scale", 0.5, 1, "--workers", 0, "--opt", "sgd", "--sched",
          "cosine", "--sched_on_updates", "--filter_bias_and_bn", "--weight_decay", 5e-4,
          "--smoothing", 0.1, "--print_freq", 100]
BASE = ["--batch_size", 128, "--lr", 0.2, "--epochs", BASE_EPOCHS]
FINE = ["--batch_size", 32, "--lr", 0.02, "--epochs", EPOCHS]
FLOAT32, RESUMED = "float32", "float32, stopped and resumed"
WAYS: Dict[str, List] = {
    FLOAT32: [],
    "O2": ["--apex", "--apex_opt_level", "O2"],
    "float32, average of the weights": ["--model_ema", "--model_ema_decay", 0.99],
    RESUMED: [],
}


def halves(images: Path, folder: Path, per_class: int):
    """Links to the classes of even number, and to `per_class` images of each of the others."""
    places = folder / "base", folder / "fine"
    for split in ("train", "val"):
        for number, label in enumerate(sorted((images / split).iterdir())):
            to = places[number % 2] / split / label.name
            to.mkdir(parents=True, exist_ok=True)
            files = sorted(label.iterdir())
            for file in files[:per_class if number % 2 and split == "train" else None]:
                (to / file.name).symlink_to(file.resolve())
    return places


def base_weights(place: Path, folder: Path, device: str) -> Path:
    """Train on the first half; returns the checkpoint."""
    output = folder / "base run"
    processes.run(ROOT / "train.py", "--data_path", place, "--device", device, *COMMON, *BASE,
                  "--skip_validation", "--output", output)
    return output / "checkpoint.pth.tar"


def fine_tune(way: str, weights: Path, place: Path, output: Path, seed: int, device: str) -> float:
    """One fine-tuning; returns the Acc@1 of its last epoch, of the average where there is one."""
    command = [ROOT / "train.py", "--data_path", place, "--device", device, *COMMON, *FINE,
               *WAYS[way], "--seed", seed, "--output", output]
    start = ["--ckpt_path", weights]
    if way == RESUMED:
        interrupt([*command, *start], output)
        start = ["--resume", "auto"]
    return processes.acc1(processes.run(*command, *start))


def interrupt(command: List, output: Path) -> None:
    """Start a run, and stop it by SIGTERM inside its third epoch.

    Raises:
        processes.Failed: it did not end as a run does that was stopped and saved.
    """
    child = subprocess.Popen([sys.executable, *map(str, command)], env=processes.environment(),
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log, mark = output / "train.log", "Epoch: [2]["
    while child.poll() is None and not (log.is_file() and mark in log.read_text("utf-8")):
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    status = child.wait()
    if status not in (128 + signal.SIGTERM, -signal.SIGTERM):
        raise processes.Failed(f"the run that was to be stopped ended with status {status}")


def same_weights(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same bits."""
    import torch

    from mobilenetv3 import checkpoint

    first, second = (checkpoint.load(os.fspath(run / "checkpoint.pth.tar"))["state_dict"]
                     for run in (one, other))
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first)


def compare(images: Path, folder: Path, seeds: List[int], device: str, per_class: int,
            done: List[dict], note) -> None:
    """Fine-tune in every way that is not among the rows of `done`; tells `note` each new row."""
    wanted = [(way, seed) for seed in seeds for way in WAYS
              if not any(row["name"] == way and row["seed"] == seed for row in done)]
    if not wanted:
        return
    base, fine = halves(images, folder, per_class)
    weights = base_weights(base, folder, device)
    for way, seed in wanted:
        output = folder / f"{way} {seed}"
        row = {"name": way, "seed": seed, "acc1": fine_tune(way, weights, fine, output, seed,
                                                           device)}
        if way == RESUMED:
            plain = folder / f"{FLOAT32} {seed}"
            if not plain.is_dir():  # its row is from an earlier start of the benchmark
                fine_tune(FLOAT32, weights, fine, plain, seed, device)
            row["same_bits"] = same_weights(plain, output)
        note(row)

