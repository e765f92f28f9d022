"""Class scores and names of images, from a network that `api.init_model` made."""
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Union

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from mobilenetv3.prepare import ImageLike


def inference_model(
    model: nn.Module, image: Union[ImageLike, Sequence[ImageLike]]
) -> Union[Dict[str, Any], List[Dict[str, Any]]]:
    """Classify an image, or several.

    Args:
        model: from `init_model`.
        image: a path, a PIL image, or a uint8 array (H, W, 3) in the order R, G, B, which is not
            mmcv's; see `prepare.read_image`. Or a list of them.

    Returns:
        A dict with `pred_class`, the name of the best class; `pred_label`, its number;
        `pred_score`, its probability; `pred_scores`, float32 (num_classes,), those of all classes;
        `top`, see `classify`. For a list of images a list of dicts.

    Raises:
        FileNotFoundError: there is no such image.
        ValueError: it cannot be read, or the network is no classifier.
    """
    if isinstance(image, (list, tuple)):
        return list(classify(model, image))
    return next(classify(model, [image]))


def classify(
    model: nn.Module, images: Iterable[ImageLike], batch_size: int = 32, top_k: int = 5
) -> Iterator[Dict[str, Any]]:
    """Classify any number of images, a batch at a time; yields one result an image, in order.

    Args:
        model: from `init_model`; it is put into eval mode.
        images: as in `inference_model`; taken as they are needed, so a generator will do.
        top_k: length of the result's `top`, dicts with class, score and label, best first.

    Raises:
        FileNotFoundError, ValueError: as `inference_model`.
    """
    if batch_size < 1 or top_k < 1:
        raise ValueError(f"batch_size is {batch_size}, top_k is {top_k}; expected 1 or more")
    prepare = getattr(model, "data_preprocessor", None)
    if prepare is None:
        raise ValueError("the model does not say how images are prepared; make it with init_model")
    images, names = iter(images), model.classes
    while True:
        batch = [image for _, image in zip(range(batch_size), images)]
        if not batch:
            return
        for scores in _scores(model, prepare(batch)):
            if len(names) != len(scores):  # the classifier was replaced since
                names = class_names(len(scores))
            best = scores.topk(min(top_k, len(scores)))
            top = [
                {"class": names[label], "score": score, "label": label}
                for score, label in zip(best.values.tolist(), best.indices.tolist())
            ]
            yield {
                "pred_class": top[0]["class"],
                "pred_label": top[0]["label"],
                "pred_score": top[0]["score"],
                "pred_scores": scores.numpy(),
                "top": top,
            }


def _scores(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Probabilities on the host: (N, in_chans, H, W) -> (N, num_classes), float32."""
    model.eval()
    with torch.no_grad():
        logits = model(batch)
    if not torch.is_tensor(logits) or logits.dim() != 2 or not model.num_classes:
        raise ValueError(
            f"this {model.config['arch']} has no classifier, so there are no class scores; "
            "model(x) gives its output"
        )
    return logits.float().softmax(1).cpu()


def class_names(num_classes: int, classes: Optional[Sequence[str]] = None) -> List[str]:
    """A name for each class.

    Args:
        classes: what the checkpoint says; ImageNet's synsets such as n01440764 become words. Where
            it says nothing, or of another number of classes, a number of classes that ImageNet
            has (1,000, or those of its larger sets) gets ImageNet's names from timm, and any other
            gets plain numbers.
    """
    if classes is not None and len(classes) == num_classes:
        classes = [str(name) for name in classes]
        if not any(name.startswith(("n0", "n1")) for name in classes):
            return classes
        info = ImageNetInfo()
        words = dict(zip(info.label_names(), info.label_descriptions()))
        return [words.get(name, name) for name in classes]
    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is None:
        return [str(label) for label in range(num_classes)]
    return ImageNetInfo(subset).label_descriptions()
