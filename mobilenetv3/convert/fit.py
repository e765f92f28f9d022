"""Which network the names and shapes of a file belong to."""
from typing import Dict, Iterator, List, NamedTuple, Sequence, Tuple

from mobilenetv3.models.arch import ARCHS, WIDTH_RULES, Plan, plan
from mobilenetv3.models.names import MODELS, takes_any_width

from .layout import shapes, trimmed
from .source import Names, Network, Source

# Layers that a file may lack: a backbone without its classifier.
OPTIONAL = ("classifier",)


class Difference(NamedTuple):
    """What keeps a file from being a network, by the file's names."""

    missing: List[str]
    unexpected: List[str]
    reshaped: List[str]  # "name (file's shape, the network's shape)"

    @property
    def size(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)

    def told(self, limit: int = 4) -> str:
        """Side by side in one line, the first few of each kind."""
        kinds = (("missing", self.missing), ("unexpected", self.unexpected),
                 ("of another shape", self.reshaped))
        return "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:limit] + ['...'] * (len(names) > limit))}"
            for kind, names in kinds if names
        )


def fit(source: Source, found: Dict[str, Tuple[int, ...]]) -> Network:
    """The first network of a family whose layers and shapes are those of a file.

    Args:
        found: the family's layer -> shape of its weight.

    Raises:
        ValueError: none is; lists the differences to the nearest.
    """
    nearest = None
    for arch in source.archs:
        names = source.names(plan(ARCHS[arch]))  # the same at every width
        difference = _compare_names(names, found)
        if not difference.size:
            for width, rule in _widths(arch):
                network = plan(ARCHS[arch], width, rule)
                difference = compare_shapes(network, names, found)
                if not difference.size:
                    return Network(arch, width, rule, network)
                nearest = _nearer(nearest, (difference, f"{arch} of width {width:g}"))
        else:
            nearest = _nearer(nearest, (difference, arch))
    difference, name = nearest
    raise ValueError(
        f"its names are {source.name}'s, its layers those of no network known here; compared with "
        f"{name}: {difference.told()}"
    )


def _nearer(first, second):
    return second if first is None or second[0].size < first[0].size else first


def _compare_names(names: Names, found: Dict[str, Tuple[int, ...]]) -> Difference:
    wanted = {theirs: ours for ours, theirs in names.items()}
    missing = [name for name in wanted if name not in found and wanted[name] not in OPTIONAL]
    return Difference(missing, [name for name in found if name not in wanted], [])


def compare_shapes(
    network: Plan, names: Names, found: Dict[str, Tuple[int, ...]]
) -> Difference:
    """What of a file's layers (layer -> shape of its weight) has another shape in a network.

    Args:
        names: our layers -> the file's; a layer that the file lacks is no difference.
    """
    reshaped = []
    for ours, wanted in shapes(network).items():
        shape = found.get(names.get(ours, ""))
        if shape is not None and not _matches(trimmed(shape), wanted):
            told = str(wanted).replace("None", "*")
            reshaped.append(f"{names[ours]} {tuple(shape)} (there {told})")
    return Difference([], [], reshaped)


def _matches(shape: Sequence[int], wanted: Sequence) -> bool:
    return len(shape) == len(wanted) and all(
        size is None or size == given for size, given in zip(wanted, shape)
    )


def _widths(arch: str) -> Iterator[Tuple[float, str]]:
    """Widths to try, with each rule: those with a name, then every hundredth up to 3.

    Widths that give the same channels are the same network, so the first that fits will do. The
    rounder ones come first: they are likelier what the author asked for.
    """
    widths = sorted((width for family, width in MODELS.values() if family == arch), reverse=True)
    if takes_any_width(arch):
        grid = sorted(range(5, 301), key=lambda step: (step % 25 != 0, step % 5 != 0, step))
        widths = list(dict.fromkeys(widths + [step / 100 for step in grid]))
    for width in widths:
        for rule in WIDTH_RULES:
            yield width, rule
