"""The plot of an evaluation: precision and recall of finding false negatives, and where each policy works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arhn_datasets.checks.evaluation import Evaluation
from arhn_datasets.checks.measures import Finding
from arhn_datasets.errors import ConfigurationError, MissingDependencyError, OutputError
from arhn_datasets.folder.chart import BLUE, DPI, GREEN, GREY, ORANGE, PURPLE, THEMES

SIZE = 7.2, 5.6  # inches
RUN = "this run"  # of a rule that is none of ours, whose evidence carries no policy
MARKERS = {"relabel": ("o", BLUE), "filter": ("s", ORANGE), "relabel+filter": ("D", GREEN), RUN: ("o", BLUE)}
HOLLOW = {"filter": 13}  # it often stands at the place of relabel+filter
LINES = ((PURPLE, "-"), (GREY, "-"), (PURPLE, "--"), (GREY, "--"), (PURPLE, ":"))


def draw_curves(evaluation: Evaluation, path: str | Path) -> None:
    """Draw an evaluation that was made with ``curves=True``; needs no display and changes no setting of matplotlib.

    A point is a policy on the evidence of the run, with its 95 % intervals; a line is every threshold of one signal.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: the file cannot be written there.
    """
    check_plot(path)
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wanted: Any = {name: value for name, value in dict.items(matplotlib.rcParamsDefault) if name != "backend"}
    wanted.update({"font.size": 10, "text.parse_math": False})
    with matplotlib.rc_context(wanted):
        figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        figure.set_facecolor(THEMES["light"]["page"])
        _draw(figure.subplots(), evaluation)
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, format="png", metadata={"Software": None})
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error}. Name another file for the plot.") from error


def check_plot(path: str | Path) -> None:
    """Whether a plot can be drawn, and written as the file that is named.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ConfigurationError: the name is no PNG file's.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError.of("matplotlib", "evaluation", "The plot of an evaluation") from error
    if Path(path).suffix.lower() != ".png" or Path(path).is_dir():
        raise ConfigurationError(f"The plot is to be {path}; the name of a .png file was expected.")


def _draw(axes: Any, evaluation: Evaluation) -> None:
    theme, counts = THEMES["light"], evaluation.total.counts
    for (colour, style), curve in zip(LINES, evaluation.curves, strict=False):
        axes.plot(curve.recall, curve.precision, color=colour, linestyle=style, linewidth=1.4, label=f"by {curve.name}")
    for name, finding in (evaluation.policies or {RUN: evaluation.total.either}).items():
        marker, colour = MARKERS[name]
        if finding.precision is not None and finding.recall is not None:
            _draw_point(axes, finding, name, marker, colour)
    if counts["judged"]:
        share = counts["false_negatives"] / counts["judged"]
        axes.axhline(share, color=theme["rule"], linewidth=1, linestyle="--", zorder=0)
        axes.text(
            0.01, share + 0.008, "moving every negative", ha="left", va="bottom", fontsize=8.5, color=theme["text"]
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.set_title("Finding false negatives", loc="left", fontsize=11, fontweight="bold", color=theme["text"])
    size = f"{counts['judged']:,} negatives, {counts['false_negatives']:,} false"
    axes.set_title(size, loc="right", fontsize=9, color=theme["text"])
    axes.grid(color=theme["rule"], linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, loc="best")


def _draw_point(axes: Any, finding: Finding, name: str, marker: str, colour: str) -> None:
    def reach(measure: str, value: float) -> Any:
        interval = finding.ci[measure]
        return None if interval is None else [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]

    precision, recall = finding.precision or 0.0, finding.recall or 0.0
    axes.errorbar(
        recall,
        precision,
        xerr=reach("recall", recall),
        yerr=reach("precision", precision),
        fmt=marker,
        color=colour,
        markersize=HOLLOW.get(name, 8),
        markerfacecolor="none" if name in HOLLOW else colour,
        markeredgewidth=1.6,
        elinewidth=1.2,
        capsize=2,
        label=name,
        zorder=3,
    )
