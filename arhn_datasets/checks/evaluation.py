"""How right a refinement is: its labels and snippets against a truth, with intervals over queries.

A negative of the source is a false negative when the truth calls it relevant. A refinement finds it when it becomes a
positive (*relabelled*), when it leaves the negatives without becoming one (*filtered*), or either way. Pairs that the
truth does not decide count nowhere; how many there are is counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from arhn_datasets.checks import measures
from arhn_datasets.checks.measures import Bootstrap, Curve, Finding, Interval, Measures
from arhn_datasets.checks.pairs import COLUMNS, EITHER, QUALITIES, SIGNALS, STATUS, Reader
from arhn_datasets.checks.truth import Truth, read_truth
from arhn_datasets.errors import ConfigurationError, InputError, MissingDependencyError, OutputError
from arhn_datasets.folder.chart import BLUE, DPI, GREEN, GREY, ORANGE, PURPLE, THEMES
from arhn_datasets.folder.reading import open_folder
from arhn_datasets.folder.report import ALL, NO_SUBSET, format_table
from arhn_datasets.inputs.sources import folder_or_repository
from arhn_datasets.rules.arhn import POLICIES, Relabel
from arhn_datasets.rules.moves import check_origins

SAMPLES = 1000

_BATCH_ROWS = 1000


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A refinement beside a truth.

    ``policies`` holds how well false negatives would be found by each policy on the same evidence, and ``curves`` the
    same for each threshold of a signal; both only where they were asked for. ``notes`` say what limits the measures.
    """

    total: Measures
    subsets: Mapping[str, Measures]
    truth: str
    form: str
    samples: int
    seed: int
    notes: Sequence[str] = ()
    policies: Mapping[str, Finding] = field(default_factory=dict)
    curves: Sequence[Curve] = ()

    def to_json(self) -> dict[str, Any]:
        """The measures of each subset, and of all rows under ``"all"``."""
        policies = {"policies": {name: finding.to_json() for name, finding in self.policies.items()}}
        return {
            **{name: of.to_json() for name, of in self.subsets.items()},
            ALL: {**self.total.to_json(), **(policies if self.policies else {})},
        }

    def rows(self) -> list[tuple[str, Measures]]:
        """Name and measures, the subsets first and the total last; the total alone where there is one subset."""
        return [*(self.subsets.items() if len(self.subsets) > 1 else ()), (ALL, self.total)]


def evaluate(
    dataset: Any,
    truth: Any,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    relevant_from: float = 1,
    curves: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> Evaluation:
    """Compare a refined dataset with what is known of its passages.

    Rows are read in bounded memory; what is held are numbers for each judged pair.

    Args:
        dataset: A refined or published folder, a repository of the Hub, or a relabelled ``Dataset`` or ``DatasetDict``.
        truth: A file, a folder, the Hub id of a dataset, or the same in memory: judged negatives (rows of ``query_id``
            and ``negatives``, a list of ``{docid, relevant}`` with 1, 0 or null, and ``answer`` where it is known),
            qrels, or a labelled dataset, whose positives are relevant and whose negatives are not.
        samples: Bootstrap samples of queries behind each interval; 0 for no intervals.
        seed: Of these samples.
        relevant_from: The lowest grade of a relevant passage in qrels.
        curves: Also what each policy would give on the same evidence, and precision and recall over each signal.
        revision: Branch, tag or commit of a repository.
        token: Of the Hub.

    Raises:
        InputError: the dataset or the truth is not there or in no known form, or they have nothing in common.
        SchemaError: the rows were not relabelled, or their passages were changed after it.
        ConfigurationError: the folder is none of this package, or an option is out of range.
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        import sklearn.metrics  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError.of("scikit-learn", "evaluation", "An evaluation") from error
    if samples < 0:
        raise ConfigurationError(f"samples is {samples}; a number from 0 was expected.")
    tables, rule = _opened(dataset, revision, token)
    known = read_truth(truth, relevant_from=relevant_from)
    # Each policy, over the evidence and with the other options of the run.
    options = {one.name: rule[one.name] for one in fields(Relabel) if one.name in rule and one.name != "policy"}
    reader = Reader(known, [Relabel(policy=policy, **options) for policy in POLICIES] if curves else ())
    for table in tables:
        check_origins(table)
        reader.read(table)
    pairs = reader.pairs(dataset if isinstance(dataset, (str, os.PathLike)) else "The dataset")
    levels, bootstrap = measures.levels_of(known.grades[known.relevant >= 0]), Bootstrap(samples, seed)
    subsets = {
        f"{name} (subset)" if name == ALL else name: measures.measures_of(
            pairs.where(pairs.subset == number), reader.counts(name), levels, bootstrap
        )
        for name, number in reader.subsets.items()
        if name != NO_SUBSET or len(reader.subsets) > 1
    }
    total = measures.measures_of(pairs, reader.counts(None), levels, bootstrap)
    policies = {}
    for policy, moved in reader.policies:
        made = moved.pairs()
        made = made.where(made.negative & (made.relevant >= 0))
        policies[policy.policy] = measures.findings(made, bootstrap)[0][EITHER]
    found = [measures.curve_of(pairs, name) for name in SIGNALS if name != STATUS] if curves else []
    return Evaluation(
        total=total,
        subsets=subsets,
        truth=known.name,
        form=known.form,
        samples=samples,
        seed=seed,
        notes=_notes(total, known),
        policies=policies,
        curves=[curve for curve in found if curve is not None],
    )


def format_evaluation(evaluation: Evaluation) -> str:
    """The evaluation as tables for a terminal."""
    rows, total = evaluation.rows(), evaluation.total
    header = ["subset", "way", "moved", "of them false", "precision", "recall", "F1", "true lost per false"]
    lines: list[tuple[str, ...]] = [
        (
            name if way == measures.WAYS[0] else "",
            way,
            f"{finding.moved:,}",
            f"{finding.found:,}",
            *_shown_all(finding, measures.RATES),
            "-" if finding.lost_per_found is None else f"{finding.lost_per_found:.2f}",
        )
        for name, of in rows
        for way, finding in of.found.items()
    ]
    kappa = f"kappa ({total.kappa_weights})" if total.kappa_weights else "kappa"
    others = [
        (
            name,
            *_shown_all(of, ("true_negatives_lost", "kappa")),
            *(_shown(of.aucs.get(signal), of.ci["auc"] if signal == STATUS else None) for signal in total.aucs),
        )
        for name, of in rows
    ]
    parts = [
        format_table(header, lines),
        format_table(("subset", "true negatives lost", kappa, *(f"AUC {name}" for name in total.aucs)), others),
    ]
    if evaluation.policies:
        lines = [(name, *_shown_all(finding, measures.RATES)) for name, finding in evaluation.policies.items()]
        parts.append(format_table(("policy on this evidence", "precision", "recall", "F1"), lines))
    if total.snippets is not None:
        header = ["subset", "known answers", "a snippet", "exact", "contains", "token F1", "offsets"]
        known = [(name, of.snippets) for name, of in rows if of.snippets is not None]
        lines = [(name, f"{quality.pairs:,}", *_shown_all(quality, QUALITIES)) for name, quality in known]
        parts.append(format_table(header, lines))
    return "\n\n".join([*parts, _summary(evaluation)])


def _summary(evaluation: Evaluation) -> str:
    counts = evaluation.total.counts
    lines = [
        f"{counts['judged']:,} negatives of {counts['queries']:,} queries are decided by {evaluation.form}, "
        f"{counts['false_negatives']:,} of them false; left out: {counts['undecided']:,} that it does not decide, "
        f"{counts['unjudged']:,} that it does not name",
        f"in the truth and not in the data: {counts['truth_queries_not_in_data']:,} of {counts['truth_queries']:,} "
        f"queries, {counts['truth_pairs_not_in_data']:,} of {counts['truth_pairs']:,} pairs; "
        f"rows without truth: {counts['rows_without_truth']:,} of {counts['rows']:,}",
    ]
    if counts["positives_judged"]:
        said = f"{counts['positives_relevant']:,} of {counts['positives_judged']:,}"
        lines.append(f"labelled positives that the truth calls relevant: {said}")
    if evaluation.samples:
        lines.append(f"in brackets: 95 % intervals of {evaluation.samples:,} bootstrap samples of the queries")
    return "\n".join(lines)


def _shown_all(measured: Any, names: Sequence[str]) -> list[str]:
    return [_shown(getattr(measured, name), measured.ci[name]) for name in names]


def _shown(value: float | None, interval: Interval | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + ("" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]")


def _notes(total: Measures, truth: Truth) -> list[str]:
    counts, notes = total.counts, []
    if not counts["judged"]:
        notes.append("The truth decides no negative of the data; only its positives are known.")
    elif not counts["true_negatives"]:
        notes.append(
            "The truth calls no negative of the data irrelevant, as qrels that list relevant passages alone: "
            "precision, true negatives lost and AUC say nothing."
        )
    if truth.contradictory:
        notes.append(f"{truth.contradictory:,} pairs of the truth are judged both ways and count as undecided.")
    if counts["evidence_failed"]:
        notes.append(f"{counts['evidence_failed']:,} judged passages have no usable reply and are not in the AUC.")
    return notes


def _opened(dataset: Any, revision: str | None, token: str | None) -> tuple[Iterator[pa.Table], Mapping[str, Any]]:
    """The rows of a folder or of a dataset in memory, and the options of the rule of the run, where these are known."""
    if isinstance(dataset, (str, os.PathLike)):
        folder = open_folder(folder_or_repository(dataset, revision, token)[0])
        tables = (folder.tables(split, _BATCH_ROWS, columns=COLUMNS) for split in folder.splits)
        return chain.from_iterable(tables), folder.run.relabel
    if not hasattr(dataset, "select_columns"):
        raise InputError(
            f"evaluate got {type(dataset).__name__}; expected a folder of arhn-refine, the name of a repository, or a "
            "relabelled Dataset or DatasetDict."
        )
    splits = list(dataset.values()) if isinstance(dataset, Mapping) else [dataset]
    if any(split.column_names is None for split in splits):
        raise InputError(
            "evaluate got a stream that has no column names, as after map; a relabelled Dataset or DatasetDict was "
            "expected. Take its rows into memory: Dataset.from_list(list(stream))."
        )
    read = (split.select_columns([column for column in COLUMNS if column in split.column_names]) for split in splits)
    return chain.from_iterable(split.with_format("arrow").iter(_BATCH_ROWS) for split in read), {}


# --- the plot ---------------------------------------------------------------------------------------------------------

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
        _draw(figure.subplots(), evaluation, THEMES["light"])
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


def _draw(axes: Any, evaluation: Evaluation, theme: Mapping[str, str]) -> None:
    counts = evaluation.total.counts
    for (colour, style), curve in zip(LINES, evaluation.curves, strict=False):
        axes.plot(curve.recall, curve.precision, color=colour, linestyle=style, linewidth=1.4, label=f"by {curve.name}")
    for name, finding in (evaluation.policies or {RUN: evaluation.total.either}).items():
        if finding.precision is not None and finding.recall is not None:
            _draw_point(axes, finding, name, finding.precision, finding.recall)
    if counts["judged"]:
        share = counts["false_negatives"] / counts["judged"]
        axes.axhline(share, color=theme["rule"], linewidth=1, linestyle="--", zorder=0)
        axes.text(
            0.01, share + 0.008, "moving every negative", ha="left", va="bottom", fontsize=8.5, color=theme["text"]
        )
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.set_title("Finding false negatives", loc="left", fontsize=11, fontweight="bold", color=theme["text"])
    size = f"{counts['judged']:,} negatives, {counts['false_negatives']:,} false"
    axes.set_title(size, loc="right", fontsize=9, color=theme["text"])
    axes.grid(color=theme["rule"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, loc="best")


def _draw_point(axes: Any, finding: Finding, name: str, precision: float, recall: float) -> None:
    def reach(measure: str, value: float) -> Any:
        interval = finding.ci[measure]
        return None if interval is None else [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]

    marker, colour = MARKERS[name]
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
