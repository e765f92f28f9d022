"""The architecture as a test: a file imports only from a lower rank."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

RANKS = {
    "host": 0, "cpus": 0, "device": 0, "arguments": 0, "checks": 0, "config": 0, "yamlfile": 0,
    "options": 0, "logfmt": 0,
    "scaling": 0,
    "files": 0, "faults": 0, "metrics": 0, "checkpoint": 0, "entry": 0, "gradients": 0, "atc": 0,
    "peers": 0, "drawing": 0,
    "formats": 0, "text": 0, "heap": 0,
    "live": 1, "events": 1,
    "dist": 1, "replicas": 1, "precision": 1, "optim": 1, "compiling": 1, "profiling": 1,
    "finetune": 1,
    "runfolder": 2, "models": 1, "data": 1,
    "keep": 1, "predictions": 1, "results": 1, "sheet": 1, "confusion": 2,
    "apex_amp": 2, "convert": 2, "engine": 2, "report": 2, "doctor": 2, "probe": 2,
    "prepare": 2, "inference": 2, "onnxfile": 2, "exporting": 2,
    "interrupt": 2, "validated": 3, "api": 3, "snapshot": 3, "average": 3, "distill": 3,
    "build": 4, "resuming": 4, "training": 5,
    "mirror": 1, "recalibrate": 2, "candidates": 5, "rangeplot": 1, "trial": 3, "dryrun": 6,
    "lrfind": 6,
}
# Inside rank 0, and inside the two packages, the arrows that are allowed.
WITHIN = {("device", "host"), ("cpus", "host"), ("options", "arguments"), ("config", "arguments"),
          ("config", "checks"), ("config", "yamlfile"), ("yamlfile", "arguments"),
          ("checks", "options"), ("replicas", "dist"),
          ("config", "files"), ("config", "text"), ("arguments", "text"), ("entry", "text"),
          ("entry", "peers"), ("entry", "faults"), ("checkpoint", "files"),
          ("inference", "prepare"),
          ("exporting", "onnxfile"),
          ("formats", "files"), ("checkpoint", "formats")}
INSIDE = {
    "models": ["tables", "arch", "names", "backward", "layers", "blocks", "extract", "knobs",
               "features", "fuse", "mobilenet",
               "xiaolai_blocks", "xiaolai", "lraspp", "pretrained", "counts", "__init__",
               "__main__"],
    "data": ["imagefile", "badfiles", "patience", "demo", "cifar", "labels", "filelist", "listing",
             "layout", "manifest", "samplers", "shards", "fetch", "remote", "sources", "decode",
             "transforms", "dataset", "slots", "loader", "__init__", "shrink", "writer", "prepare",
             "scan", "findings", "check"],
    "formats": ["tensorbytes", "unpickle", "torchpickle", "torchfile", "torchwriter",
                "safetensors", "mindspore", "__init__"],
    "options": ["model", "data", "optimizer", "run", "export", "predict", "__init__"],
    "convert": ["layout", "source", "fit", "translate", "own", "unwrap", "timm", "torchvision",
                "mmpretrain", "mindcv", "dli14", "lraspp", "xiaolai", "weights", "load", "write",
                "__init__", "__main__"],
    "report": ["logs", "result", "case", "classes", "palette", "markup", "history", "panels",
               "records", "facts", "figures", "pictures", "sections", "page", "follow", "command",
               "__init__", "__main__"],
}
LIGHT = ("arguments", "checks", "config", "yamlfile", "options/__init__",
         "options/model", "options/data",
         "options/optimizer", "options/run", "options/export", "options/predict", "atc", "logfmt",
         "live", "entry", "files", "text",
         *(f"report/{name}" for name in INSIDE["report"]))


def imports(path):
    """(top module of the package, submodule or None) of every import of the package in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            package = path.parent.name
            names = [f"mobilenetv3.{package}.{node.module}"] if node.module else [
                f"mobilenetv3.{package}.{alias.name}" for alias in node.names
            ]
        elif isinstance(node, ast.ImportFrom) and node.module == "mobilenetv3":
            names = ["mobilenetv3." + alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):  # of a package inside, a module or a name of it
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "mobilenetv3" and len(parts) > 1:
                yield parts[1], parts[2] if len(parts) > 2 else None


MODULES = sorted((ROOT / "mobilenetv3").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_lower_ranks(path):
    inner = path.relative_to(ROOT / "mobilenetv3").parts
    if inner == ("__init__.py",):
        assert not list(imports(path))
        return
    owner = inner[0].replace(".py", "")
    for target, submodule in imports(path):
        if target == owner:
            order = INSIDE[owner]
            if submodule in order:  # else a name that the package exports
                assert order.index(submodule) < order.index(path.stem), (path.stem, submodule)
            continue
        allowed = RANKS[target] < RANKS[owner] or (owner, target) in WITHIN
        assert allowed, f"{owner} [{RANKS[owner]}] imports {target} [{RANKS[target]}]"


def test_the_engine_knows_only_dist_metrics_and_logfmt():
    found = {target for target, _ in imports(ROOT / "mobilenetv3" / "engine.py")}
    assert found == {"dist", "metrics", "logfmt"}


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_import_no_torch(name):
    source = ast.parse((ROOT / "mobilenetv3" / f"{name}.py").read_text(encoding="utf-8"))
    for node in source.body:  # at module level; a function may import what only it needs
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        heavy = {"torch", "torchvision", "timm", "numpy", "PIL", "sklearn"}
        assert not heavy & {name.split(".")[0] for name in names}


def test_device_types_are_spelled_only_where_devices_are_described():
    """"cuda" and "npu" as constants belong to device.py; options/run.py offers them by name."""
    allowed = {"device.py", "run.py", "precision.py"}
    for path in MODULES + sorted(ROOT.glob("*.py")):
        if path.name in allowed:
            continue
        spelled = {
            node.value for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and node.value in ("cuda", "npu")
        }
        assert not spelled, f"{path} spells {spelled}"
