"""The bar chart of a card: what became of the hard negatives, and how the evidence went, light and dark."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arhn_datasets.errors import MissingDependencyError
from arhn_datasets.folder.report import Report
from arhn_datasets.rows.records import shorten

WIDTH, ROW_HEIGHT = 9.0, 0.32  # inches
DPI = 160
LABEL_CHARACTERS = 32
FALLBACK_FONTS = "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Noto Sans Devanagari", "Arial Unicode MS"
LEAST_LABELLED = 0.045  # share of a bar in which a percentage still fits

# Okabe and Ito's colours, which colour-blind readers tell apart; they stand out on white and on near black.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#8A8F98"
INK: Mapping[str, str] = {BLUE: "white", ORANGE: "black", GREEN: "white", PURPLE: "black", GREY: "black"}
SMALL: Mapping[str, Any] = {"va": "center_baseline", "fontsize": 8.5}
MOVES = (("relabelled", BLUE), ("filtered", ORANGE), ("dropped", PURPLE), ("kept", GREY))
STATUSES = {"snippets": BLUE, "rankings": GREEN, "rows": PURPLE}
THEMES: Mapping[str, Mapping[str, str]] = {
    "light": {"page": "#ffffff", "text": "#1f2328", "rule": "#d1d9e0"},
    "dark": {"page": "#0d1117", "text": "#e6edf3", "rule": "#3d444d"},
}


def draw_chart(report: Report, path_light: Path, path_dark: Path) -> None:
    """Draw the counts as two PNG files; needs no display and changes no setting of matplotlib.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError.of("matplotlib", "charts", "The chart of a card") from error
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    settings: dict[str, Any] = {
        # The font that matplotlib brings, so that the same counts give the same picture on every machine; others only
        # for what it does not have.
        "font.family": ["DejaVu Sans", *(font for font in FALLBACK_FONTS if font in installed)],
        "font.size": 10,
        "axes.unicode_minus": False,
        "text.parse_math": False,
        "text.usetex": False,
        "svg.fonttype": "none",
    }
    wanted: Any = {name: value for name, value in dict.items(matplotlib.rcParamsDefault) if name != "backend"}
    wanted.update(settings)
    for theme, path in (("light", Path(path_light)), ("dark", Path(path_dark))):
        path.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(wanted), warnings.catch_warnings():
            # A letter that no font here has is drawn as a box; the tables of the card have the name.
            warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
            _draw(report, THEMES[theme], path)


def label_of(name: Any) -> str:
    """A subset's name as the font can show it: one short line, in the order in which it is written."""
    line = shorten(str(name), LABEL_CHARACTERS)
    shown = "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c).startswith("C") else c for c in line)
    while sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in shown) > LABEL_CHARACTERS:
        shown = shown[:-2] + "…"
    return shown or "(empty)"


def _draw(report: Report, theme: Mapping[str, str], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    total = report.total
    shown = [(move, colour) for move, colour in MOVES if move in report.names]
    moves = [
        (label_of(name), [(getattr(counts, move), colour) for move, colour in shown]) for name, counts in report.rows()
    ]
    evidence = [
        (kind, STATUSES[kind], counts)
        for kind, counts, _ in total.statuses()
        if kind in STATUSES and any(counts.values())
    ]
    statuses = sum(len(counts) for _, _, counts in evidence)
    heights = [len(moves) + 2.4, statuses + 1.6] if statuses else [len(moves) + 2.4]
    figure = Figure(figsize=(WIDTH, ROW_HEIGHT * sum(heights) + 0.3), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=0.12, h_pad=0.1)
    figure.set_facecolor(theme["page"])
    panels = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _moved(panels[0], moves, shown, theme)
    if statuses:
        _histogram(panels[1], evidence, theme)
    # Without the version of the library: equal counts, equal bytes.
    figure.savefig(path, format="png", metadata={"Software": None})


def _moved(
    axes: Any,
    lines: Sequence[tuple[str, Sequence[tuple[int, str]]]],
    shown: Sequence[tuple[str, str]],
    theme: Mapping[str, str],
) -> None:
    """A stacked bar of shares for each subset, and how many negatives they are shares of."""
    from matplotlib.patches import Patch

    for at, (_, parts) in enumerate(lines):
        whole, left = sum(number for number, _ in parts), 0.0
        for number, colour in parts:
            share = number / whole if whole else 0.0
            axes.barh(at, share, left=left, color=colour, height=0.74, edgecolor=theme["page"], linewidth=0.8)
            if share >= LEAST_LABELLED:
                axes.text(left + share / 2, at, f"{share:.0%}", ha="center", color=INK[colour], **SMALL)
            left += share
        axes.text(1.01, at, f"{whole:,}", color=theme["text"], **SMALL)
    _dress(axes, "What became of the hard negatives", [label for label, _ in lines], theme, pad=24)
    axes.legend(
        handles=[Patch(color=colour, label=name) for name, colour in shown],
        loc="lower left",
        bbox_to_anchor=(-0.008, 1.0),
        ncols=len(shown),
        frameon=False,
        fontsize=9,
        labelcolor=theme["text"],
        handlelength=1,
        handleheight=1,
        columnspacing=1.6,
        borderpad=0.1,
    )


def _histogram(axes: Any, evidence: Sequence[tuple[str, str, Mapping[str, int]]], theme: Mapping[str, str]) -> None:
    """A bar for each status, as its share of its kind."""
    labels: list[str] = []
    for kind, colour, counts in evidence:
        whole = sum(counts.values())
        for status, number in counts.items():
            axes.barh(len(labels), number / whole, color=colour, height=0.74)
            said, inside = f"{number:,}  ({number / whole:.1%})", number / whole > 0.8
            at, aligned, ink = (-0.01, "right", INK[colour]) if inside else (0.01, "left", theme["text"])
            axes.text(number / whole + at, len(labels), said, ha=aligned, color=ink, **SMALL)
            labels.append(f"{kind}: {status}")
    _dress(axes, "How the evidence went", labels, theme, pad=8)


def _dress(axes: Any, title: str, labels: Sequence[str], theme: Mapping[str, str], pad: float) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=theme["text"], pad=pad)
    axes.set_facecolor(theme["page"])
    axes.set_xlim(0, 1)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xticks([])
    axes.tick_params(colors=theme["text"], length=0)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(theme["rule"])
