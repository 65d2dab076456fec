"""Draw figures of curves and bars, and encode images; faces are drawn in `flr.landmarks.draw`."""

import html
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

import cv2
import numpy as np

from flr.metrics.functional import ced

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Spread = tuple[float, float]  # mean and standard deviation over seeds


def jpeg(image: np.ndarray) -> bytes:
    """Encode an image (H, W, 3) RGB uint8 as JPEG."""
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def png(figure: "Figure") -> bytes:
    """Encode a figure as PNG."""
    file = io.BytesIO()
    figure.savefig(file, dpi=110)
    return file.getvalue()


def svg(figure: "Figure") -> str:
    """Return a figure as SVG for a page; a mark with a `set_hover` text shows it under the pointer."""
    import matplotlib as mpl

    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "flr"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>| xmlns(:xlink)?=\"[^\"]*\"", "", file.getvalue(), flags=re.DOTALL)
    text = text[text.index("<svg") :]
    return re.sub(r'(<g id="hover:([^"]*)">)', lambda found: f"{found[1]}<title>{unquote(found[2])}</title>", text)


def _hover(artist: "Artist", text: str) -> None:
    """Show a text where the pointer is over an artist of an SVG."""
    artist.set_gid(f"hover:{quote(html.escape(text))}")


def figure(columns: int = 1, rows: int = 1) -> "Figure":
    """Make an empty figure, which needs no window system and leaves matplotlib's global state alone."""
    # matplotlib takes longer to import than the rest of a command that draws nothing.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5 * columns, 3.6 * rows), layout="constrained")
    FigureCanvasAgg(fig)
    fig.subplots(rows, columns, squeeze=False)
    return fig


def ced_figure(values: Mapping[str, np.ndarray], limit: float = 0.1) -> "Figure":
    """Draw the cumulative error distributions of named NMEs (N,), up to `limit`."""
    fig = figure()
    axes = fig.axes[0]
    for i, (name, nmes) in enumerate(values.items()):
        x, y = ced(nmes)
        style = ("-", "--", ":", "-.")[i // 10 % 4]  # colours repeat after ten
        x, y = 100 * np.concatenate([[0], x]), 100 * np.concatenate([[0], y])
        (line,) = axes.step(x, y, style, where="post", label=_label(name))
        for at in np.linspace(0, 100 * limit, 21)[1:]:
            share = y[np.searchsorted(x, at, side="right") - 1]
            (mark,) = axes.plot(at, share, "o", markersize=9, color=line.get_color(), alpha=0.01)
            _hover(mark, f"{name}: {share:.1f} % of the faces have an NME up to {at:.3g} %")
    axes.set(xlim=(0, 100 * limit), ylim=(0, 100), xlabel="NME, %", ylabel="faces, %", title="Cumulative error")
    axes.grid(alpha=0.3)
    _legend(axes)
    return fig


def curves_figure(history: Mapping[str, Sequence[tuple[int, float]]]) -> "Figure":
    """Draw the training loss and the validation error of a run against its steps.

    Args:
        history: Name of the metric -> (step, value) of each epoch.
    """
    fig = figure(columns=2)
    for axes, title, names in zip(
        fig.axes, ("train/loss", "val/nme, %"), (("train/loss",), ("val/nme", "val/baseline_nme")), strict=True
    ):
        for name in names:
            steps, values = zip(*history.get(name) or [(0, np.nan)], strict=True)
            axes.plot(steps, values, "--" if "baseline" in name else "-", label=name)
        axes.set(title=title, xlabel="step", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend()
    return fig


def short(value: float) -> str:
    """Write a cost, 0 or more, in few characters: 4.6 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def _label(name: str) -> str:
    """Shorten a name for a legend, which would hide one that begins with an underscore."""
    words = textwrap.shorten(name, 40, placeholder="...")
    return f" {words}" if words.startswith("_") else words


def _legend(axes: "Axes") -> None:
    """Add a legend: inside where it is short, else next to the panels."""
    fig = axes.get_figure(root=True)
    assert fig is not None
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 4:
        fig.set_figwidth(fig.get_figwidth() + 4)
        legend = fig.legend(handles, labels, loc="outside right upper")
    else:
        legend = axes.legend(handles, labels)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar sign in a name is not a formula


def cost_figure(nme: Mapping[str, Spread], costs: Mapping[str, Mapping[str, Spread]]) -> "Figure":
    """Draw the NME, percent, of named groups against each cost, one panel per cost.

    Args:
        nme: Group -> mean and deviation.
        costs: Name of the cost with its unit -> group -> mean and deviation.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter  # as slow as the rest of matplotlib

    fig = figure(columns=max(1, len(costs)))
    for axes, (cost, values) in zip(fig.axes, costs.items(), strict=False):
        for i, name in enumerate(nme):
            (x, dx), (y, dy) = values.get(name, (np.nan, 0)), nme[name]
            colour, shape = f"C{i}", "os^D"[i // 10 % 4]
            bars = axes.errorbar(x, y, dy, dx, fmt=shape, capsize=3, color=colour, label=_label(name))
            _hover(bars.lines[0], f"{name}: {short(x)} {cost}, NME {y:.2f} %")
        axes.set(title=f"NME against {cost.partition(',')[0]}", xlabel=cost, ylabel="NME, %")
        means = [x for x, _ in values.values()]
        if means and max(means) > 10 * min(means) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=8))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(lambda value, _: short(value) if value >= 0 else "")
        axes.margins(0.15)
        axes.grid(alpha=0.3)
    _legend(fig.axes[0])
    return fig


def stress_figure(results: Mapping[str, tuple[float, Mapping[str, Sequence[float]]]]) -> "Figure":
    """Draw the NME, percent, of models by severity, one panel per kind of corruption.

    Args:
        results: Model -> the NME without corruption, and kind -> the NME at each severity.
    """
    kinds = list(next(iter(results.values()))[1])
    columns = min(3, len(kinds))
    fig = figure(columns, -(-len(kinds) // columns))
    for axes, kind in zip(fig.axes, kinds, strict=False):
        for i, (name, (clean, values)) in enumerate(results.items()):
            line = [clean, *values[kind]]
            axes.plot(range(len(line)), line, ("o-", "s--", "^:", "D-.")[i % 4], label=_label(name))
        axes.set(title=kind.replace("_", " "), xlabel="severity", ylabel="NME, %", ylim=(0, None))
        axes.grid(alpha=0.3)
    for axes in fig.axes[len(kinds) :]:
        axes.set_visible(False)
    _legend(fig.axes[0])
    return fig
