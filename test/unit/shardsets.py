"""Image folders and prepared sets for tests, written in this process."""
import io
import os
import signal

import numpy as np
from PIL import Image

from mobilenetv3.data import prepare

PLENTY = 24
"""Images of `many`, each of a class of its own, so that its label tells which it is."""


def noise(width, height, seed=0):
    """A picture that no other seed makes."""
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(str(path), **options)
    return path


def many(root, images=PLENTY, splits=("train", "val")):
    """Small JPEGs, image i alone in the class of its number; train and val have the same ones."""
    for split in splits:
        for number in range(images):
            save(root / split / f"c{number:03d}" / f"photo.{number}.jpg", noise(36, 32, number))
    return root


def run(*words):
    """The command in this process; returns its exit status."""
    return prepare.run([str(word) for word in words])


def prepared(folder, *words, **options):
    """A prepared set of `many`: folder/src, in shards of about four images in folder/dst."""
    many(folder / "src", **options)
    assert run(folder / "src", folder / "dst", "--size", 32, "--shard_mb", 0.016,
               "--workers", 0, *words) == 0
    return folder / "dst"


def tree(folder):
    """Content of all files below a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def in_child(action):
    """Run an action in a forked process; returns its status, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            status = action()
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    return -os.WTERMSIG(ended) if os.WIFSIGNALED(ended) else os.WEXITSTATUS(ended)


def die():
    """End this process as a power cut does."""
    os.kill(os.getpid(), signal.SIGKILL)


def jpeg(image, **options):
    """An image as the bytes of a JPEG."""
    target = io.BytesIO()
    image.save(target, "JPEG", **options)
    return target.getvalue()
