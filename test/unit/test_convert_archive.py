"""Checkpoints that the families' own code wrote, with the logits that it computes."""
import os
import tarfile
from pathlib import Path

import pytest
import torch

from mobilenetv3 import convert

np = pytest.importorskip("numpy")

ARCHIVE = Path(os.environ.get("MOBILENETV3_TEST_DATA", "")) / "peer_checkpoints.tar.xz"
pytestmark = pytest.mark.skipif(
    not ARCHIVE.is_file(), reason="MOBILENETV3_TEST_DATA holds no peer_checkpoints.tar.xz"
)

# file -> architecture, bn_eps, pad_type
FILES = {
    "ascend/contrib_mobilenetv3_large_100.pth.tar": ("mobilenetv3_large_100", 1e-5, "symmetric"),
    "d-li14/mobilenetv3-small.pth": ("dli14_mobilenetv3_small_100", 1e-5, "symmetric"),
    "mindcv/mobilenet_v2_075.ckpt": ("mobilenetv2_075", 1e-5, "symmetric"),
    "mindcv/mobilenet_v3_small_075.ckpt": ("mobilenetv3_small_075", 1e-5, "same_depthwise"),
    "mmpretrain/mobilenet-v3-small-050.pth": ("mobilenetv3_small_050", 1e-3, "symmetric"),
    "timm/mobilenetv3_small_100_ema.pth.tar": ("mobilenetv3_small_100", 1e-5, "symmetric"),
    "timm/tf_mobilenetv3_small_075.safetensors": ("tf_mobilenetv3_small_075", 1e-3, "same"),
    "torchvision/lraspp_mobilenet_v3_large.pth": ("lraspp_mobilenetv3_large", 1e-3, "symmetric"),
    "torchvision/mobilenet_v3_large_w075.pth": ("mobilenetv3_large_075", 1e-3, "symmetric"),
    "torchvision/mobilenet_v3_small.pth": ("mobilenetv3_small_100", 1e-3, "symmetric"),
    "xiaolai2019/mbv3_small.old.pth.tar": ("xiaolai2019old_mobilenetv3_small", 1e-5, None),
    "xiaolai2019/mbv3_small.pth.tar": ("xiaolai2019_mobilenetv3_small", 1e-5, None),
    "xiaolai2023/mobilenetv3_small.pth": ("xiaolai2023_mobilenetv3_small", 1e-5, None),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("archive")
    with tarfile.open(str(ARCHIVE)) as archive:
        options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(str(target), **options)
    found = next(path.parent for path in target.rglob("input_224.npz"))
    listed = {str(path.relative_to(found)) for path in found.glob("*/*")
              if path.suffix not in (".npz", ".json")}
    assert listed == set(FILES)
    return found


def published(folder, file):
    """(images, {name: logits}) of a file."""
    stem = folder / file
    while stem.suffix in (".pth", ".tar", ".ckpt", ".safetensors"):
        stem = stem.with_suffix("")
    side = 128 if "lraspp" in file else 224
    images = np.load(str(folder / f"input_{side}.npz"))["input"]
    logits = np.load(str(stem) + ".npz")
    return torch.from_numpy(images), {name: logits[name] for name in logits.files}


def computed(weights, images):
    with torch.no_grad():
        out = convert.build(weights)(images)
    return (out["out"] if isinstance(out, dict) else out).numpy()


@pytest.mark.parametrize("file", FILES)
def test_the_logits_are_those_that_the_family_computes(file, folder):
    images, logits = published(folder, file)
    weights = convert.read(folder / file)
    arch, eps, pad_type = FILES[file]
    config = weights.config
    assert (config["arch"], config["bn_eps"], config.get("pad_type")) == (arch, eps, pad_type)
    # Observed: 1.2e-5 at most; a wrong eps or padding makes 0.08 and more.
    assert np.abs(computed(weights, images) - logits["logits"]).max() <= 1e-4


def test_averaged_weights(folder):
    file = "timm/mobilenetv3_small_100_ema.pth.tar"
    images, logits = published(folder, file)
    found = computed(convert.read(folder / file, ema=True), images)
    assert np.abs(found - logits["logits_ema"]).max() <= 1e-4


@pytest.mark.parametrize("file, to", [
    ("mindcv/mobilenet_v2_075.ckpt", "mindcv"),
    ("mindcv/mobilenet_v3_small_075.ckpt", "mindcv"),
    ("mmpretrain/mobilenet-v3-small-050.pth", "mmpretrain"),
    ("timm/tf_mobilenetv3_small_075.safetensors", "timm"),
    ("torchvision/mobilenet_v3_large_w075.pth", "torchvision"),
    ("torchvision/lraspp_mobilenet_v3_large.pth", "torchvision"),
])
def test_there_and_back_is_bit_identical(file, to, folder, tmp_path):
    from mobilenetv3 import checkpoint

    target = tmp_path / ("back" + Path(file).suffix)
    convert.save(convert.read(folder / file), target, to=to)
    first, second = (checkpoint.load(path) for path in (folder / file, target))
    first, second = first.get("state_dict", first), second.get("state_dict", second)
    assert list(first) == list(second) or to == "timm"  # safetensors has an order of its own
    assert set(first) == set(second)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    if to == "mindcv":
        assert target.read_bytes() == (folder / file).read_bytes()
