"""The picture of a learning-rate range test."""
from typing import BinaryIO, Optional, Sequence


def draw(file: BinaryIO, rates: Sequence[float], losses: Sequence[float],
         smoothed: Sequence[float], suggestion: Optional[float], lowest: Optional[float]) -> None:
    """Draw loss over learning rate as a PNG, with matplotlib.

    Args:
        rates: of each update; the axis is logarithmic.
        losses, smoothed: of each update, finite.
        suggestion, lowest: rates to mark; None for none.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 5.0), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(1, 1, 1)
    axes.plot(rates, losses, color="0.75", linewidth=1.0, label="loss of each update")
    axes.plot(rates, smoothed, color="tab:blue", linewidth=2.0, label="smoothed")
    axes.set_xscale("log")
    # The end of a test that diverged would press all that matters flat.
    least, begin = min(losses), smoothed[0]
    top = begin + 0.75 * max(begin - least, 0.1 * abs(begin))
    axes.set_ylim(least - 0.05 * (top - least), top)
    for rate, colour, label in ((suggestion, "tab:green", "suggested"),
                                (lowest, "tab:orange", "lowest")):
        if rate is not None:
            axes.axvline(rate, color=colour, linestyle="--", linewidth=1.5,
                         label=f"{label}: {rate:.3g}")
    axes.set(xlabel="learning rate", ylabel="training loss", title="Learning-rate range test")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(loc="best")
    figure.tight_layout()
    figure.savefig(file, format="png")
