"""An interval for the probability of a yes-no question (inductive Venn-Abers predictor).

    low  = share of yes at x, by isotonic regression on the held-out rows and (x, no)
    high = the same on the held-out rows and (x, yes)                  (Vovk & Petej 2014, arXiv 1211.0025)

x is the question's raw log-odds. Promised is, whatever the model, if new rows are like the held-out ones: the end that
belongs to the row's true answer is calibrated, P(yes | that end) = that end. So the share of yes among new rows lies
between their mean low and their mean high.

It is no confidence interval. It is as wide as one more row can move the fit, about 1/n with n rows alike, while the fit
errs by about 1/√n: the more rows, the more rarely it holds the true probability (benchmarks/venn_abers.py).

**Scores.** Isotonic regression sees the order of x alone, so the interval is the same for any calibration that rises
with x, and shares its order. x has not seen the held-out answers: the promise is exact, without cross-fitting.
Probabilities of the stored calibration have seen them (binned ones gave intervals of half the width); those of ten
cross-fits come in ten orders.

**The calibrated probability may lie outside**, and does for most rows where a formula calibrates: it uses all rows
where an end uses those nearby. If the formula is right, it is the better of the two. Both are reported as they are,
since moving either would break what it promises.

Cost: a sort and a pass over the rows, 0.02 s for 2,000 and 0.7 s for 100,000 (the stack of Vovk, Petej & Fedorova 2015,
arXiv 1511.00213); a tenth to a quarter of a millisecond for each answer and class.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from clsgen_dist.calibration.by_question import log_odds
from clsgen_dist.calibration.fitting_rows import known_rows
from clsgen_dist.calibration.prevalence import Prevalence
from clsgen_dist.io.tables import markdown_table
from clsgen_dist.model.label_space import LabelSpace

# N rows, C classes, K logits, Q questions, S distinct scores

MAX_STEPS = 1000
"""Steps kept of each end; of more, evenly spaced ones, so that intervals can only become wider. On synthetic rows,
2,000 gave some 120 steps, 100,000 some 600."""
_DECIMALS = 6


@dataclass(frozen=True)
class VennAbers:
    """Both ends of a question's interval, as steps. Log-odds are not rounded: a row could change sides of its own."""

    low_from: tuple[float, ...]
    """Rising log-odds, from each of which on a value of ``low`` holds; before the first, low is 0."""
    low: tuple[float, ...]
    high_to: tuple[float, ...]
    """Rising log-odds, up to each of which a value of ``high`` holds; after the last, high is 1."""
    high: tuple[float, ...]
    rows: int
    """Held-out rows with a known answer."""

    def ends(self, x_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``[N]`` low and ``[N]`` high at log-odds ``[N]``."""
        at_low_N = np.searchsorted(self.low_from, x_N, side="right")
        at_high_N = np.searchsorted(self.high_to, x_N, side="left")
        return np.array([0.0, *self.low])[at_low_N], np.array([*self.high, 1.0])[at_high_N]

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> VennAbers:
        """Inverse of ``dataclasses.asdict``, through JSON."""
        low_from, low, high_to, high = (tuple(map(float, fields[n])) for n in ("low_from", "low", "high_to", "high"))
        return cls(low_from, low, high_to, high, int(fields["rows"]))


def fit_venn_abers(x_N: np.ndarray, answers_N: np.ndarray, most_steps: int = MAX_STEPS) -> VennAbers:
    """The ends from held-out rows; without any they are 0 and 1.

    Args:
        x_N: log-odds, or another score, by a model that has not seen the rows' answers.
        answers_N: 0 and 1.
        most_steps: steps kept of each end.
    """
    x_S, at_N = np.unique(x_N, return_inverse=True)
    rows_S = np.bincount(at_N, minlength=len(x_S))
    yes_S = np.bincount(at_N[answers_N == 1], minlength=len(x_S))
    # Between two scores, a row that is added with no joins the block before it, one with yes the block after it. So low
    # holds from a score to the next, and high down to the one before.
    high_S = _with_a_yes(rows_S, yes_S).round(_DECIMALS)
    low_S = (1 - _with_a_yes(rows_S[::-1], (rows_S - yes_S)[::-1])[::-1]).round(_DECIMALS)
    at_low = _thinned(np.flatnonzero(np.diff(low_S, prepend=0.0) > 0), most_steps)
    at_high = _thinned(np.flatnonzero(np.diff(high_S, append=1.0) > 0), most_steps)
    low_from, low, high_to, high = (
        tuple(of_S.tolist()) for of_S in (x_S[at_low], low_S[at_low], x_S[at_high], high_S[at_high])
    )
    return VennAbers(low_from, low, high_to, high, len(x_N))


def _thinned(steps: np.ndarray, most: int) -> np.ndarray:
    """Without a step, the value of the one before holds on (low), or that of the one after holds already (high)."""
    return steps if len(steps) <= most else steps[np.linspace(0, len(steps) - 1, most).round().astype(int)]


def _with_a_yes(rows_S: np.ndarray, yes_S: np.ndarray) -> np.ndarray:
    """``[S]`` isotonic share of yes at each score, if it had one more row, with yes.

    Isotonic shares are slopes: of the convex hull, from below, of the path of (rows, yes), summed from the first score
    on. The row added is a step (1, 1) right before its score. To move it to the next score is to replace the one point
    between them, and the hull, kept as a stack with its left end on top, changes there alone. Exact, in integers.
    """
    Point = tuple[int, int]

    def turns_left(a: Point, b: Point, c: Point) -> bool:
        return (b[0] - a[0]) * (c[1] - b[1]) > (b[1] - a[1]) * (c[0] - b[0])

    ends = list(zip(np.cumsum(rows_S).tolist(), np.cumsum(yes_S).tolist(), strict=True))
    hull: list[Point] = []
    for point in [(-1, -1), (0, 0), *ends]:  # the row added is before the first score
        while len(hull) > 1 and not turns_left(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    hull.reverse()
    share_S = np.empty(len(ends))
    for score, (rows, yes) in enumerate(ends):
        left, right = hull[-1], hull[-2]
        share_S[score] = (right[1] - left[1]) / (right[0] - left[0])
        moved = (rows - 1, yes - 1)
        if not turns_left(left, moved, right):
            continue  # on the hull or above it
        hull.pop()
        while len(hull) > 1 and not turns_left(moved, hull[-1], hull[-2]):
            hull.pop()
        hull.append(moved)
    return share_S


@dataclass(frozen=True)
class ProbabilityIntervals:
    """The intervals of a label space: binary, of the positive class; multi-label, of each class."""

    questions_Q: tuple[VennAbers, ...]
    mean_width_Q: tuple[float, ...]
    """On the held-out rows."""
    outside_Q: tuple[float, ...]
    """Share of them whose calibrated probability is outside."""

    def ends(
        self, logits_NK: np.ndarray, space: LabelSpace, prevalence: Prevalence | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """``[N, Q]`` low and ``[N, Q]`` high, corrected for the deployed prevalence as probabilities are."""
        x_NQ = _question_log_odds(logits_NK, space)
        pairs = [question.ends(x_N) for question, x_N in zip(self.questions_Q, x_NQ.T, strict=True)]
        low_NQ, high_NQ = (np.stack([pair[end] for pair in pairs], axis=1) for end in (0, 1))
        if prevalence is None:
            return low_NQ, high_NQ
        return _corrected(low_NQ, space, prevalence), _corrected(high_NQ, space, prevalence)

    def named(
        self, logits_NK: np.ndarray, space: LabelSpace, prevalence: Prevalence | None
    ) -> list[dict[str, tuple[float, float]]]:
        """The interval of each class that has one, for each row."""
        names = interval_classes(space)
        rows = zip(*(end_NQ.tolist() for end_NQ in self.ends(logits_NK, space, prevalence)), strict=True)
        return [dict(zip(names, zip(low, high, strict=True), strict=True)) for low, high in rows]

    def to_json(self) -> dict[str, Any]:
        """JSON values for ``clsgen.json``."""
        return {
            "questions": [asdict(question) for question in self.questions_Q],
            "mean_width": list(self.mean_width_Q),
            "outside": list(self.outside_Q),
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> ProbabilityIntervals:
        """Inverse of :meth:`to_json`."""
        questions = tuple(VennAbers.from_json(question) for question in fields["questions"])
        return cls(questions, tuple(map(float, fields["mean_width"])), tuple(map(float, fields["outside"])))

    def text(self, space: LabelSpace) -> str:
        """What the intervals say, and how wide they are."""
        lines = [["class", "mean width", "probability outside", "rows"]]
        columns = self.mean_width_Q, self.outside_Q, self.questions_Q
        for name, width, outside, question in zip(interval_classes(space), *columns, strict=True):
            lines.append([name, f"{width:.4f}", f"{100 * outside:.1f} %", str(question.rows)])
        return (
            "Venn-Abers intervals: from the probability with the row itself added as a no, to that with it as a yes\n"
            f"{markdown_table(lines)}\nno confidence intervals: the more rows, the more rarely they hold the true "
            "probability; an end is calibrated if it is that of the true answer"
        )


def has_intervals(space: LabelSpace) -> bool:
    """Whether its probabilities are those of yes-no questions: binary and multi-label."""
    return space.kind == "multilabel" or space.is_binary


def interval_classes(space: LabelSpace) -> tuple[str, ...]:
    """The classes whose probabilities have an interval."""
    return space.names if space.kind == "multilabel" else (space.positive,)


def fit_intervals(
    logits_NK: np.ndarray,
    probabilities_NC: np.ndarray,
    labels: np.ndarray,
    space: LabelSpace,
    prevalence: Prevalence | None = None,
) -> ProbabilityIntervals:
    """The intervals from held-out rows.

    Args:
        logits_NK: raw logits.
        probabilities_NC: calibrated, and corrected for the deployed prevalence.
        labels: classes ``[N]``; multi-label: answers ``[N, C]``, NaN where not known.
        space: binary or multi-label.
        prevalence: where the model is used; None: that of the rows.
    """
    if space.kind == "multilabel":
        p_NQ, answers_NQ = probabilities_NC, labels
    else:
        p_NQ = probabilities_NC[:, [space.positive_index]]
        answers_NQ = (labels == space.positive_index).astype(float)[:, None]
    x_NQ = _question_log_odds(logits_NK, space)
    pairs = zip(x_NQ.T, answers_NQ.T, strict=True)
    fitted = ProbabilityIntervals(tuple(fit_venn_abers(*known_rows(*pair)) for pair in pairs), (), ())
    low_NQ, high_NQ = fitted.ends(logits_NK, space, prevalence)
    weights = np.ones(labels.shape) if prevalence is None else prevalence.weights(labels, space.kind)
    weight_NQ = weights.reshape(len(labels), -1)
    outside_NQ = (p_NQ < low_NQ) | (p_NQ > high_NQ)
    width_Q, outside_Q = (np.average(of_NQ, axis=0, weights=weight_NQ) for of_NQ in (high_NQ - low_NQ, outside_NQ))
    return ProbabilityIntervals(fitted.questions_Q, tuple(width_Q.tolist()), tuple(outside_Q.tolist()))


def _question_log_odds(logits_NK: np.ndarray, space: LabelSpace) -> np.ndarray:
    """``[N, Q]`` raw log-odds of each class that has an interval."""
    x_NQ = log_odds(logits_NK, space.kind)
    return -x_NQ if space.kind != "multilabel" and space.positive_index == 0 else x_NQ


def _corrected(end_NQ: np.ndarray, space: LabelSpace, prevalence: Prevalence) -> np.ndarray:
    if space.kind == "multilabel":
        return prevalence.corrected(end_NQ, space.kind)
    both_N2 = np.hstack([1 - end_NQ, end_NQ] if space.positive_index == 1 else [end_NQ, 1 - end_NQ])
    return prevalence.corrected(both_N2, space.kind)[:, [space.positive_index]]
