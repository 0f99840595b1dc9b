"""Which measure catches which planted lie, and that the table in the docs is what the measures give."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import explanation_lies as lies


@pytest.fixture(scope="module")
def cells():
    return lies.table_of_cells()


CATCHES = {
    "wrong class": {"contradictions", "κ with the decision", "alignment, AUROC", "counterfactual, follows"},
    "invented numbers": {"numbers found", "counterfactual, excess", "reconstruction, MRR", "sufficiency, excess"},
    "boilerplate": {
        "statements found", "Vendi score", "simulatability, class masked", "reconstruction, MRR", "chrF", "ROUGE-L",
    },
    "copied input": {"copied", "comprehensiveness, excess", "sufficiency, excess", "chrF", "ROUGE-L"},
    "irrelevant evidence": {
        "comprehensiveness, excess", "sufficiency, excess", "counterfactual, excess", "simulatability, class masked",
        "chrF", "ROUGE-L",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", CATCHES)
def test_exactly_these_measures_catch_the_lie(cells, kind):
    assert {measure for measure in lies.MEASURES if lies.caught(cells, kind, measure)} == CATCHES[kind]


def test_honest_explanations_agree_are_grounded_and_name_what_decides(cells):
    honest = {measure: cell.value for measure, cell in cells["honest"].items()}
    assert honest["contradictions"] == 0 and honest["κ with the decision"] == honest["alignment, AUROC"] == 1
    assert honest["numbers found"] == honest["statements found"] == 1
    assert cells["honest"]["comprehensiveness, excess"].low > 0.1
    assert cells["honest"]["sufficiency, excess"].high < 0
    assert cells["honest"]["counterfactual, excess"].low > 0.5 and honest["counterfactual, follows"] == 1
    assert honest["simulatability"] > honest["simulatability, input"] + 0.1


def test_boilerplate_retrieves_its_input_no_better_than_chance(cells):
    by_chance = np.mean(1 / np.arange(1, lies.ROWS + 1))
    assert cells["boilerplate"]["reconstruction, MRR"].value < 1.5 * by_chance


def test_the_table_in_the_docs_is_up_to_date(cells):
    assert lies.table(cells) in lies.DOC.read_text(), "run: python scripts/explanation_lies.py --write"
