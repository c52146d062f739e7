"""The chart: what it draws, that no name breaks it, and what it leaves alone."""

from __future__ import annotations

import builtins
import warnings
from itertools import pairwise

import pytest

pytest.importorskip("matplotlib")

import matplotlib  # noqa: E402
from matplotlib import image  # noqa: E402

from arhn_datasets.errors import MissingDependencyError  # noqa: E402
from arhn_datasets.folder import chart  # noqa: E402
from arhn_datasets.folder.chart import LABEL_CHARACTERS, draw_chart, label_of  # noqa: E402
from arhn_datasets.folder.report import Counts, Report  # noqa: E402

COUNTS = Counts(
    rows=10,
    positives=12,
    negatives=70,
    relabelled=10,
    filtered=20,
    kept=40,
    snippets={"grounded": 42, "no_answer": 40},
    rankings={"ranked": 10},
    decisions={"changed": 9, "unchanged": 1},
)
NAMES = [
    "$a_{x$",
    "\\frac{",
    "<b>&amp;",
    "_x_",
    "a\nb",
    "\u202eevil",
    "\x00",
    "中文" * 40,
    "עברית",
    "🙂",
    "w" * 400,
    "",
    "%",
]


def draw(tmp_path, report):
    """The pixels of both pictures."""
    draw_chart(report, tmp_path / "charts" / "light.png", tmp_path / "charts" / "dark.png")
    return [image.imread(tmp_path / "charts" / f"{theme}.png") for theme in ("light", "dark")]


def texts_and_bars(report, monkeypatch, tmp_path):
    """What stands in the light picture: every text with its box, every bar, and the size of the picture."""
    from matplotlib.figure import Figure

    found = {}
    save = Figure.savefig

    def saved(figure, path, **options):
        save(figure, path, **options)
        if "light" in str(path):
            renderer = figure.canvas.get_renderer()
            texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_visible() and text.get_text()]
            found["texts"] = {text: text.get_window_extent(renderer) for text in texts}
            found["labels"] = [label.get_window_extent(renderer) for label in figure.axes[0].get_yticklabels()]
            found["widths"] = [[bar.get_width() for bar in axes.patches] for axes in figure.axes]
            found["size"] = figure.get_size_inches() * figure.dpi

    monkeypatch.setattr(Figure, "savefig", saved)
    draw(tmp_path, report)
    return found


def test_the_two_pictures_fit_their_pages(tmp_path):
    """One on white and one on near black, of the same size, with the same bars."""
    light, dark = draw(tmp_path, Report(total=COUNTS, subsets={}))
    assert light.shape == dark.shape
    assert light[0, 0, :3].min() > 0.95
    assert dark[0, 0, :3].max() < 0.15


def test_the_bars_are_the_shares(tmp_path, monkeypatch):
    """Relabelled, filtered and kept of each subset; each status of its kind."""
    none = Counts(rows=1, negatives=0)
    found = texts_and_bars(Report(total=COUNTS, subsets={"a": COUNTS, "b": none}), monkeypatch, tmp_path)
    moves, statuses = found["widths"]
    share = pytest.approx([10 / 70, 20 / 70, 40 / 70])
    assert moves[:3] == share
    assert moves[3:6] == [0, 0, 0]
    assert moves[6:] == share
    assert statuses == pytest.approx([42 / 82, 40 / 82, 1, 0.9, 0.1])
    words = [text.get_text() for text in found["texts"]]
    assert {"14%", "29%", "57%", "70", "snippets: grounded", "42  (51.2%)", "relabelled", "kept"} <= set(words)


@pytest.mark.parametrize("count", [0, 1, 5, 50])
def test_no_label_is_cut_off_or_on_another(count, tmp_path, monkeypatch):
    """Every text lies in the picture, and the names of the subsets one below the other."""
    subsets = {f"{i} {NAMES[i % len(NAMES)]}": COUNTS for i in range(count)}
    found = texts_and_bars(Report(total=COUNTS, subsets=subsets), monkeypatch, tmp_path)
    width, height = found["size"]
    for text, box in found["texts"].items():
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    assert len(found["labels"]) == (count + 1 if count > 1 else 1)
    assert all(below.y1 <= above.y0 for above, below in pairwise(found["labels"]))


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_drawn_as_it_is(name, tmp_path, monkeypatch):
    """No mathematics, no markup, no control, no warning: one short line."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # of the loops that `datasets` leaves open in other tests
        found = texts_and_bars(Report(total=COUNTS, subsets={name: COUNTS, "x": COUNTS}), monkeypatch, tmp_path)
    assert label_of(name) in [text.get_text() for text in found["texts"]]
    assert 0 < len(label_of(name)) <= LABEL_CHARACTERS
    assert label_of(name).isprintable()


def test_nothing_counted_is_drawn_as_nothing(tmp_path):
    """An empty report has a chart, too."""
    assert draw(tmp_path, Report(total=Counts(), subsets={}))[0].any()


def test_equal_counts_give_equal_pictures_and_settings_stay(tmp_path):
    """The user's settings and backend change nothing and are not changed."""
    report = Report(total=COUNTS, subsets={})
    draw(tmp_path / "a", report)
    with matplotlib.rc_context({"font.size": 30, "text.usetex": False, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        draw(tmp_path / "b", report)
        assert dict(matplotlib.rcParams) == before
    for theme in ("light", "dark"):
        one, other = (tmp_path / run / "charts" / f"{theme}.png" for run in "ab")
        assert one.read_bytes() == other.read_bytes()


def test_without_matplotlib_the_message_names_the_extra(tmp_path, monkeypatch):
    """What is missing and how to install it."""
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"arhn_datasets\[charts\]"):
        chart.draw_chart(Report(total=COUNTS, subsets={}), tmp_path / "l.png", tmp_path / "d.png")
