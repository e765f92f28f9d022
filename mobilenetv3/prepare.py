"""From images as people have them to the batch that a network takes, prepared as its weights need.

    model.data_preprocessor(["cat.jpg", "dog.jpg"])      # (2, 3, 224, 224) on the model's device
"""
import os
from typing import Any, Dict, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mobilenetv3.data import imagefile
from mobilenetv3.data.transforms import INTERPOLATION, val_transform
from mobilenetv3.options.data import PREPARE

ImageLike = Union[str, os.PathLike, Image.Image, np.ndarray]

_ORIENTATION = 0x0112  # the entry of EXIF
_TURNS = {  # its values but for 1, which is upright
    2: Image.FLIP_LEFT_RIGHT, 3: Image.ROTATE_180, 4: Image.FLIP_TOP_BOTTOM, 5: Image.TRANSPOSE,
    6: Image.ROTATE_270, 7: Image.TRANSVERSE, 8: Image.ROTATE_90,
}

_FORMS = "a path, a PIL image, or a uint8 array: (H, W, 3) in the order R, G, B, or (H, W)"


def read_image(image: ImageLike) -> Image.Image:
    """Open an image; the result has mode RGB.

    Args:
        image: a path, a PIL image, or a uint8 array: (H, W, 3) in the order R, G, B (OpenCV's and
            mmcv's arrays are B, G, R: give `array[..., ::-1]`), (H, W, 4) with alpha, which is
            dropped, or (H, W) for grey. Turning the image as its EXIF entry says is left to the
            caller, because the images that the networks are trained and scored on are not turned.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, a damaged one, or none of these forms.
    """
    if isinstance(image, Image.Image):
        return _rgb(image, "the PIL image")
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if not isinstance(image, (str, os.PathLike)):
        raise ValueError(
            f"cannot take a {type(image).__name__} for an image; expected {_FORMS} (a batch that "
            "is prepared already goes to model(x) itself)"
        )
    path = os.path.expanduser(os.fspath(image))
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder; expected an image, or a list of images")
    if not os.path.exists(path):
        raise FileNotFoundError(f"no image at {path}; expected a file")
    try:
        return imagefile.decode(imagefile.read(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be used: {error.strerror or error}") from error


def turned(image: Image.Image) -> Image.Image:
    """An image turned as its EXIF entry says; as it is where there is none that can be read.

    Pillow's exif_transpose also rewrites the other entries, and fails where one is malformed.
    """
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # a damaged entry fails in as many ways as there are fields in it
        return image
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        return imagefile.to_rgb(image)
    except imagefile.BadImage as error:
        raise ValueError(f"{name} cannot be used: {error}") from error


def _from_array(array: np.ndarray) -> Image.Image:
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not is_image or not array.size:
        raise ValueError(
            f"cannot take an array of {array.dtype} and shape {array.shape} for an image; expected "
            f"{_FORMS}"
        )
    return _rgb(Image.fromarray(np.ascontiguousarray(array)), "the array")


class Preprocessor:
    """Prepares images for one network: resize, centre crop, normalise, as validation does.

    It knows the network through one of its layers, so that `device` is where the network is, also
    after `network.to(...)`, and a batch has the type of its weights.

    Attributes:
        img_size, crop_pct, interpolation: of the resize and the centre crop.
        mean, std: of images scaled to 0..1, a value a channel.
        transform: PIL image of mode RGB -> uint8 array (3, img_size, img_size).
    """

    def __init__(self, network: nn.Module, prepare: Dict[str, Any], in_chans: int = 3):
        """Args:
            prepare: img_size, crop_pct, interpolation, mean and std.
            in_chans: 3, or 1 for a network that sees grey images; mean and std are then averages.

        Raises:
            ValueError: the interpolation is not one of those known here.
        """
        if prepare["interpolation"] not in INTERPOLATION:
            raise ValueError(
                f"interpolation is {prepare['interpolation']!r}, expected one of "
                f"{', '.join(INTERPOLATION)}"
            )
        self.img_size, self.crop_pct = int(prepare["img_size"]), float(prepare["crop_pct"])
        self.interpolation = prepare["interpolation"]
        self.mean = _of_channels(prepare["mean"], in_chans)
        self.std = _of_channels(prepare["std"], in_chans)
        self.in_chans = in_chans
        self.transform = val_transform(self.img_size, self.crop_pct, self.interpolation)
        # A layer, not the network: a reference back would keep its memory past `del network`.
        self._layer = next(layer for layer in network.modules() if _own_weight(layer) is not None)

    def replaced(self, network: nn.Module, given: Dict[str, Any]) -> "Preprocessor":
        """One for the same network that differs in what is given and not None.

        Args:
            given: names of PREPARE and values; others are passed over.
        """
        said = {name: given.get(name) for name in PREPARE}
        return Preprocessor(network, {
            name: getattr(self, name) if value is None else value for name, value in said.items()
        }, self.in_chans)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return _own_weight(self._layer).device

    def __call__(self, images: Union[ImageLike, Sequence[ImageLike], Tensor]) -> Tensor:
        """Prepare one image or a list of them, see `read_image`: -> (N, in_chans, S, S).

        A uint8 tensor (N, in_chans, H, W) is a batch that has its size already; it is normalised.

        Raises:
            FileNotFoundError, ValueError: as `read_image`; also for a tensor of another form, and
                for a network that takes neither 3 channels nor 1.
        """
        if self.in_chans not in (1, 3):
            raise ValueError(
                f"the network takes {self.in_chans} channels; images can be prepared for 3, or 1 "
                "(grey): give it a tensor of its own, model(x)"
            )
        if torch.is_tensor(images):
            batch = self._checked(images)
        else:
            single = not isinstance(images, (list, tuple))
            arrays = [self._array(image) for image in ([images] if single else images)]
            if not arrays:
                raise ValueError("no images were given; expected at least one")
            batch = torch.from_numpy(np.stack(arrays))
        weight, shape = _own_weight(self._layer), (1, self.in_chans, 1, 1)
        mean = torch.tensor(self.mean, device=weight.device).view(shape) * 255.0
        std = torch.tensor(self.std, device=weight.device).view(shape) * 255.0
        batch = batch.to(weight.device).to(torch.float32)
        return batch.sub_(mean).div_(std).to(weight.dtype)

    def _array(self, image: ImageLike) -> np.ndarray:
        """One image as uint8 (in_chans, S, S)."""
        image = read_image(image)
        if self.in_chans == 1:
            image = image.convert("L").convert("RGB")
        return self.transform(image)[:self.in_chans]

    def _checked(self, batch: Tensor) -> Tensor:
        if batch.dtype != torch.uint8 or batch.dim() != 4 or batch.shape[1] != self.in_chans:
            raise ValueError(
                f"cannot prepare a tensor of {batch.dtype} and shape {tuple(batch.shape)}; "
                f"expected uint8 of shape (N, {self.in_chans}, H, W), values 0 to 255"
            )
        return batch

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(img_size={self.img_size}, crop_pct={self.crop_pct:g}, "
            f"interpolation={self.interpolation!r}, mean={self.mean}, std={self.std})"
        )


def _own_weight(layer: nn.Module) -> Optional[Tensor]:
    """The first parameter that is a layer's own; None where it has none."""
    return next(layer.parameters(recurse=False), None)


def _of_channels(values: Sequence[float], in_chans: int) -> Tuple[float, ...]:
    """A value a channel; for grey images, the average of the three."""
    values = tuple(float(value) for value in values)
    return (sum(values) / len(values),) if in_chans == 1 else values
