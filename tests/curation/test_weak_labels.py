"""Votes combined: on a known truth, against a plain reference, and through files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clsgen_dist.cli import main
from clsgen_dist.curation.combine_votes import combine_votes, label_cell
from clsgen_dist.curation.weak_labels import Votes, dawid_skene, vote_shares
from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.ingest import read_examples
from clsgen_dist.errors import DataError, SettingsError

PRIOR = np.array([0.5, 0.3, 0.2])


def confusion(right: float) -> Any:
    """A voter who errs evenly."""
    return np.full((3, 3), (1 - right) / 2) + np.eye(3) * (right - (1 - right) / 2)


BIASED = np.array([[0.95, 0.03, 0.02], [0.55, 0.40, 0.05], [0.50, 0.05, 0.45]])
"""A voter who says the first class when in doubt."""
CONFUSION = np.stack([confusion(0.9), confusion(0.75), confusion(0.6), BIASED, confusion(0.1)])


def simulated(rows: int, seed: int, missing: float = 0.2) -> tuple[Votes, Any]:
    """Votes drawn from the model, and the true classes."""
    generator = np.random.default_rng(seed)
    true_N = generator.choice(3, rows, p=PRIOR)
    row_V, voter_V, class_V = [], [], []
    for row, true in enumerate(true_N):
        for voter in range(len(CONFUSION)):
            if generator.random() >= missing:
                row_V.append(row)
                voter_V.append(voter)
                class_V.append(generator.choice(3, p=CONFUSION[voter, true]))
    return Votes.of(row_V, voter_V, class_V, (rows, len(CONFUSION), 3)), true_N


def test_the_truth_is_found_better_than_by_majority_and_so_are_the_voters() -> None:
    votes, true_N = simulated(3000, seed=0)
    fitted = dawid_skene(votes)
    has_votes = votes.per_row_N > 0
    by_majority = (np.nan_to_num(vote_shares(votes)).argmax(axis=1) == true_N)[has_votes].mean()
    by_model = (fitted.posterior_NC.argmax(axis=1) == true_N)[has_votes].mean()
    assert by_model > 0.88 > by_majority + 0.03
    assert np.abs(fitted.confusion_ACC - CONFUSION).max() < 0.08
    assert np.abs(fitted.prior_C - PRIOR).max() < 0.03
    assert fitted.accuracy_A == pytest.approx(np.einsum("acc,c->a", CONFUSION, PRIOR), abs=0.04)


def test_its_probabilities_are_calibrated_where_voters_err_apart() -> None:
    votes, true_N = simulated(6000, seed=1)
    posterior_NC = dawid_skene(votes).posterior_NC
    sure_N, right_N = posterior_NC.max(axis=1), posterior_NC.argmax(axis=1) == true_N
    for low, high in ((0.4, 0.7), (0.7, 0.9), (0.9, 0.99), (0.99, 1.01)):
        here = (sure_N >= low) & (sure_N < high)
        assert here.sum() > 150 and right_N[here].mean() == pytest.approx(sure_N[here].mean(), abs=0.06)


def plain_step(votes: Votes, q: Any, smoothing: float) -> Any:
    """One M and one E step by the equations, vote by vote."""
    voted = sorted(set(votes.row_V.tolist()))
    p = np.array([smoothing + sum(q[n, j] for n in voted) for j in range(votes.classes)])
    pi = np.full((votes.voters, votes.classes, votes.classes), smoothing)
    for n, a, said in zip(votes.row_V, votes.voter_V, votes.class_V, strict=True):
        pi[a, :, said] += q[n]
    p, pi = p / p.sum(), pi / pi.sum(axis=2, keepdims=True)
    new = np.tile(p, (votes.rows, 1))
    for n, a, said in zip(votes.row_V, votes.voter_V, votes.class_V, strict=True):
        new[n] *= pi[a, :, said]
    return new / new.sum(axis=1, keepdims=True)


def test_two_iterations_equal_the_plain_equations() -> None:
    votes, _ = simulated(40, seed=2, missing=0.5)
    shares = vote_shares(votes)
    q = np.where(np.isnan(shares), 1 / 3, shares)
    for _ in range(2):
        q = plain_step(votes, q, 0.1)
    fitted = dawid_skene(votes, max_iterations=2)
    assert np.allclose(fitted.posterior_NC, q, atol=1e-12)


VOTES = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(triples=VOTES, order=st.permutations(range(3)))
def test_each_iteration_gains_and_names_of_classes_do_not_matter(
    triples: list[tuple[int, int, int]], order: list[int]
) -> None:
    row_V, voter_V, class_V = zip(*triples, strict=True)
    fitted = dawid_skene(Votes.of(row_V, voter_V, class_V, (12, 4, 3)), max_iterations=25)
    gains = np.diff(fitted.objective)
    assert (gains >= -1e-9 * np.abs(fitted.objective[1:])).all()
    assert np.allclose(fitted.posterior_NC.sum(axis=1), 1)
    renamed = [order[name] for name in class_V]
    same = len(fitted.objective)
    again = dawid_skene(Votes.of(row_V, voter_V, renamed, (12, 4, 3)), max_iterations=same, tolerance=-1)
    assert np.allclose(again.posterior_NC[:, order], fitted.posterior_NC, atol=1e-6)


def votes_file(folder: Path, votes: Votes) -> Path:
    names = ["alpha", "beta", "gamma"]
    rows: list[dict[str, Any]] = [{"text": f"row {n}", "x": 1.5} for n in range(votes.rows)]
    for n, a, said in zip(votes.row_V, votes.voter_V, votes.class_V, strict=True):
        rows[n][f"v{a}"] = names[said]
    rows[0]["label"] = "gamma"
    for a in range(votes.voters):
        rows[1].pop(f"v{a}", None)
        rows[2].setdefault(f"v{a}", -1)
    path = folder / "votes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    return path


def test_labels_are_written_as_the_reader_takes_them(tmp_path: Path) -> None:
    votes, _ = simulated(300, seed=3)
    path, output = votes_file(tmp_path, votes), tmp_path / "out.jsonl"
    voters = [f"v{a}" for a in range(5)]
    report = combine_votes(str(path), output, voters, columns=Columns(), abstain=["-1"])
    lines = output.read_text().splitlines()
    assert lines[0] == path.read_text().splitlines()[0] and lines[-1] == "{broken"
    assert json.loads(lines[1])["label"] is None and json.loads(lines[5])["x"] == 1.5
    assert (report.rows, report.bad, report.had_label) == (301, 1, 1) and report.without_votes >= 2
    found = read_examples(
        str(output), columns=Columns(), labels=None, max_bad_fraction=0.1, quarantine=None, space="single"
    )
    assert found.labels == ["alpha", "beta", "gamma"]
    soft = [example for example in found.examples if example.answers]
    assert len(soft) > 150
    for example in soft:
        assert example.answers is not None
        written = json.loads(lines[example.line - 1])["label"]
        assert example.answers == pytest.approx(written, abs=1e-5) and example.label == max(written, key=written.get)
    assert report.voters[0].accuracy == pytest.approx(0.9, abs=0.1) and report.voters[4].agreement < 0.3


def test_shares_and_certain_labels(tmp_path: Path) -> None:
    path, output = tmp_path / "votes.csv", tmp_path / "out.jsonl"
    path.write_text("text,a,b,c\none,yes,yes,no\ntwo,no,no,no\nthree,,,\nfour,1,1.0,no\n")
    combine_votes(str(path), output, ["a", "b", "c"], columns=Columns(), method="shares")
    labels = [json.loads(line)["label"] for line in output.open()]
    assert labels[1:3] == ["no", None]
    assert labels[0] == pytest.approx({"yes": 2 / 3, "no": 1 / 3}, abs=1e-5) and labels[3].keys() == {"1", "no"}
    assert label_cell(np.array([0.9997, 0.0002, 0.0001]), ["a", "b", "c"]) == "a"
    assert label_cell(np.array([0.6, 0.3998, 0.0002]), ["a", "b", "c"]) == {"a": 0.60012, "b": 0.39988}


def test_the_command_prints_what_it_thinks_of_each_voter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    votes, _ = simulated(300, seed=4)
    output = tmp_path / "out.jsonl"
    words = ["data", "combine", str(votes_file(tmp_path, votes)), "--voters", "[v0, v1, v2, v3, v4]"]
    main([*words, "--abstain", "[-1]", "--output", str(output)])
    printed = capsys.readouterr().out.splitlines()
    own = int(((votes.voter_V == 0) & (votes.row_V != 1)).sum())
    assert printed[1].split()[:2] == ["v0", str(own)]
    assert len(output.read_text().splitlines()) == 301


def test_a_voter_who_is_named_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_text('{"text": "one", "a": "yes", "b": "no"}\n')
    with pytest.raises(SettingsError, match=r"names 'a' twice, which would count its votes twice; name it once"):
        combine_votes(str(path), tmp_path / "out.jsonl", ["a", "a", "b"], columns=Columns())


def test_wrong_columns_and_cells_are_named(tmp_path: Path) -> None:
    path, output = tmp_path / "votes.jsonl", tmp_path / "out.jsonl"
    path.write_text('{"text": "one", "a": "yes", "b": ["x", "y"]}\n')
    with pytest.raises(DataError, match=r"votes.jsonl:1: the vote in b is .* expected one class; correct it"):
        combine_votes(str(path), output, ["a", "b"], columns=Columns())
    with pytest.raises(SettingsError, match="--voters names 'q', which is no column"):
        combine_votes(str(path), output, ["a", "q"], columns=Columns())
    with pytest.raises(SettingsError, match="expected two or more columns"):
        combine_votes(str(path), output, ["a"], columns=Columns())
    path.write_text('{"text": "one", "a": null, "b": ""}\n')
    with pytest.raises(DataError, match="has no vote in a, b"):
        combine_votes(str(path), output, ["a", "b"], columns=Columns())
    assert not output.exists()
