"""What one row shows: each fault is found in rows that are good otherwise, and good rows are left alone."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from clsgen_dist.curation.explanation_checks import IssueCode, explanation_issues, severity
from clsgen_dist.curation.settings import CurationSettings, SeveritySettings
from clsgen_dist.data.reading.evidence_cells import evidence_of
from clsgen_dist.data.reading.label_cells import OTHERS
from clsgen_dist.explanations.stated_class import ClassNames
from tests.curation.planted_rows import LABELS, good_rows

NAMES = ClassNames(LABELS)
EVERY = CurationSettings(severity=SeveritySettings(personal_data="note"))


def issues(text, explanation, label=None, labels=LABELS, evidence=(), counter=(), settings=EVERY, answers=None):
    """Codes of the issues of a row, evidence given as quotes."""
    spans, against = (evidence_of(list(quotes), text, []) for quotes in (evidence, counter))
    found = explanation_issues(
        text,
        explanation,
        label=label,
        answers=answers,
        names=ClassNames(labels),
        evidence=spans,
        counter_evidence=against,
        settings=settings,
    )
    return {issue.code: issue.detail for issue in found}


def test_good_rows_have_no_issues():
    for row in good_rows(200):
        assert issues(row["text"], row["explanation"], row["label"], evidence=row["evidence"]) == {}, row


def test_each_code_has_a_severity_in_the_recipe():
    assert {code.replace("-", "_") for code in IssueCode} == set(vars(SeveritySettings()))
    assert severity(IssueCode.PERSONAL_DATA, CurationSettings()) == "off"
    assert all(code.words for code in IssueCode)


@pytest.mark.parametrize(
    ("explanation", "label", "labels"),
    [
        ("The border is jagged, which makes it malignant.", "benign", LABELS),
        ("A smooth border, so this is a benign lesion.", "malignant", LABELS),
        ("This is not malignant.", "malignant", LABELS),
        ("Malignant lesions look otherwise, so it is benign.", "malignant", LABELS),
        ("The answer is no, since it rains.", "yes", ["no", "yes"]),
        ("Label: no. It rains.", "yes", ["no", "yes"]),
        ("No, since it rains.", "yes", ["no", "yes"]),
        ("It rains all day, so no.", "yes", ["no", "yes"]),
        ("Clearly a case of credit risk.", "fraud", ["credit risk", "fraud"]),
        ("The answer is B, since juice is wet.", "A", ["A", "B"]),
    ],
)
def test_an_explanation_of_another_class_is_found(explanation, label, labels):
    assert IssueCode.NAMES_OTHER_CLASS in issues("The case of a border.", explanation, label, labels)


@pytest.mark.parametrize(
    ("explanation", "label", "labels"),
    [
        ("Benign lesions are smooth, this one is jagged, so it is malignant.", "malignant", LABELS),
        ("It could be mistaken for benign, but the jagged border makes it malignant.", "malignant", LABELS),
        ("This is not benign.", "malignant", LABELS),
        ("Smooth rather than malignant in shape.", "benign", LABELS),
        ("There is no reason to doubt it, so the answer is yes.", "yes", ["no", "yes"]),
        ("No juice belongs on cereal.", "yes", ["no", "yes"]),
        ("No class is named here at all.", "benign", LABELS),
        ("So no juice belongs on cereal.", "yes", ["no", "yes"]),
        ("The border of the state decides.", "law", ["border", "law"]),
        ("B makes sense, a pan can hold eggs.", "A", ["A", "B"]),
        ("A score of 1 would need more.", "0", ["0", "1"]),
        ("The label is benign, although malignant was considered.", "benign", LABELS),
        ("This is malignant.", None, LABELS),
        ("This is malignant.", "unknown class", LABELS),
    ],
)
def test_an_explanation_that_weighs_or_excludes_other_classes_is_left_alone(explanation, label, labels):
    assert IssueCode.NAMES_OTHER_CLASS not in issues("The case of a border.", explanation, label, labels)


NOTE = "Fever for three days. No rash was seen. Blood pressure was high, margins irregular. She denies chest pain."


@pytest.mark.parametrize(
    ("explanation", "quote"),
    [
        ("The patient has no fever, so it is harmless.", "Fever for three days"),
        ("Fever is absent, which speaks against it.", "Fever for three days"),
        ("A rash was seen, which decides it.", "No rash was seen"),
        ("The typical rash decides it.", "rash"),
        ("The low blood pressure decides it.", "Blood pressure was high"),
        ("With regular margins there is little to fear.", "margins irregular"),
        ("Her chest pain is alarming.", "denies chest pain"),
    ],
)
def test_an_explanation_that_denies_its_evidence_is_found(explanation, quote):
    assert IssueCode.CONTRADICTS_EVIDENCE in issues(NOTE, explanation, evidence=[quote])
    assert IssueCode.CONTRADICTS_EVIDENCE in issues(NOTE, explanation, counter=[quote])
    assert IssueCode.CONTRADICTS_EVIDENCE not in issues(NOTE, explanation)


@pytest.mark.parametrize(
    ("explanation", "quote"),
    [
        ("Fever for days points to an infection.", "Fever for three days"),
        ("There is no doubt about the fever.", "Fever for three days"),
        ("Not only fever, but pressure too.", "Fever for three days"),
        ("Without a rash it is not measles, but the fever stays.", "Fever for three days"),
        ("There is no rash.", "No rash was seen"),
        ("A rash is absent.", "No rash was seen"),
        ("High blood pressure decides it.", "Blood pressure was high"),
        ("Irregular margins are a bad sign.", "margins irregular"),
        ("She has no chest pain.", "denies chest pain"),
        ("Nothing of this is named.", "Fever for three days"),
        ("No blood was found in the urine.", "Blood pressure was high"),
    ],
)
def test_an_explanation_that_agrees_with_its_evidence_is_left_alone(explanation, quote):
    assert IssueCode.CONTRADICTS_EVIDENCE not in issues(NOTE, explanation, evidence=[quote])


def test_copies_are_found_by_their_share_and_by_their_longest_run():
    long = " ".join(f"word{i} of the tale" for i in range(30))
    assert issues(NOTE, NOTE)[IssueCode.COPIES_INPUT] == "100% of its runs of 4 words"
    assert IssueCode.COPIES_INPUT in issues(NOTE, "Fever for three days. No rash was seen.")
    own = " ".join(f"own{i} thought" for i in range(40))
    half = " ".join(long.split()[:60])
    assert issues(long, f"{own} {half}")[IssueCode.COPIES_INPUT] == "60 words in a row"
    assert IssueCode.COPIES_INPUT not in issues(long, f"{own} {' '.join(long.split()[:30])}")
    assert IssueCode.COPIES_INPUT not in issues(NOTE, "The fever for three days made us look at the pressure again.")
    assert IssueCode.COPIES_INPUT not in issues("It rains.", "It rains.")


@pytest.mark.parametrize(
    ("text", "explanation", "detail"),
    [
        (
            "The margins are irregular and the radius is large in this scan.",
            "Die Ränder sind unregelmäßig und der Radius ist sehr groß.",
            "de, the text is en",
        ),
        (
            "Le patient présente une fièvre élevée depuis trois jours.",
            "The patient has had a high fever for three days now.",
            "en, the text is fr",
        ),
        (
            "The margins are irregular and the radius is large in this scan.",
            "这个病变的边缘不规则，半径很大，因此需要进一步的检查，医生建议尽快进行活组织检查以确定诊断结果。",
            "zh, the text is en",
        ),
    ],
)
def test_another_language_is_found(text, explanation, detail):
    assert issues(text, explanation)[IssueCode.OTHER_LANGUAGE] == detail
    assert IssueCode.OTHER_LANGUAGE not in issues(text, text)


@pytest.mark.parametrize(
    "explanation",
    [
        "radius 12.3; texture 14.2; perimeter 88; smoothness 0.1; area 5",
        "Die Ränder.",
        "Opacities bilat. w/ effusion, cardiomegaly, s/p CABG",
    ],
)
def test_languages_are_not_compared_without_certainty(explanation):
    text = "The margins are irregular and the radius is large in this scan."
    assert IssueCode.OTHER_LANGUAGE not in issues(text, explanation)


def test_lengths_are_counted_in_words():
    settings = replace(EVERY, min_words=3, max_words=6)
    assert issues(NOTE, "High pressure.", settings=settings) == {IssueCode.TOO_SHORT: "2 words, the least are 3"}
    assert issues(NOTE, "Pressure was rather high.", settings=settings) == {}
    assert set(issues(NOTE, "So her pressure was rather high today.", settings=settings)) == {IssueCode.TOO_LONG}


@pytest.mark.parametrize(
    ("explanation", "detail"),
    [
        ("A mass of 14.1 mm.", None),
        ("A mass of 14 mm in 12 % of cases.", None),
        ("In 12.5 percent, by 1,000 readings.", None),
        ("A mass of 17.2 mm.", "17.2"),
        ("By 2,000 readings of 14.127 mm.", "2,000"),
        ("Grown by 40 % to 14.127 mm.", "40 %"),
    ],
)
def test_numbers_are_looked_for_rounded_and_as_percentages(explanation, detail):
    text = "A mass of 14.127 mm, in 1000 readings a share of 0.125 or 12.4 %."
    assert issues(text, explanation).get(IssueCode.UNGROUNDED_NUMBER) == detail


def test_numbers_in_the_name_of_a_class_are_no_claims():
    assert issues("A mass.", "It looks like grade 3 to me.", "grade 3", ["grade 2", "grade 3"]) == {}


@pytest.mark.parametrize(
    ("explanation", "is_found"),
    [
        ("The note says 'rash on both arms'.", True),
        ("The note says “fever for nine days”.", True),
        ("The note says 'Fever for three days'.", False),
        ("The note says 'fever ... margins irregular'.", False),
        ("The 'obvious' reading is right.", False),
        ('It says "no rash was seen" and "Blood pressure was high."', False),
    ],
)
def test_quotes_must_be_in_the_text(explanation, is_found):
    assert (IssueCode.UNGROUNDED_QUOTE in issues(NOTE, explanation)) == is_found


@pytest.mark.parametrize(
    ("text", "label", "labels", "is_found"),
    [
        ("A scan. Label: malignant", "malignant", LABELS, True),
        ("A scan. Final diagnosis: benign", "benign", LABELS, True),
        ("[label=yes] It rains.", "yes", ["no", "yes"], True),
        ("The correct answer is B.", "B", ["A", "B"], True),
        ("A scan. Label: malignant", "benign", LABELS, False),
        ("A malignant scan.", "malignant", LABELS, False),
        ("Yes, it rains.", "yes", ["no", "yes"], False),
    ],
)
def test_a_text_that_says_its_label_is_found(text, label, labels, is_found):
    found = issues(text, "The jagged border decides.", label, labels)
    assert (IssueCode.LABEL_IN_TEXT in found) == is_found


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Write to jane.doe@example.org today.", "e-mail address"),
        ("Card 4111 1111 1111 1111 was used.", "card number"),
        ("Account DE89 3704 0044 0532 0130 00 was used.", "account number (IBAN)"),
        ("Number 078-05-1120 is hers.", "social security number"),
        ("Call +49 30 901820 or nobody.", "telephone number"),
        ("Call (212) 555-0100 or nobody.", "telephone number"),
        ("Card 4111 1111 1111 1112 is not valid, 1234567890123 neither.", None),
        ("On 2024-05-12, 14.127 mm at 10:30, pages 100-200, ratio 1.25-3.5.", None),
    ],
)
def test_personal_data_is_found_by_its_form_if_asked_for(text, kind):
    found = issues(text, "The jagged border decides.").get(IssueCode.PERSONAL_DATA)
    assert found == (kind and f"{kind} in the text")
    assert IssueCode.PERSONAL_DATA not in issues(text, "The jagged border decides.", settings=CurationSettings())


def test_personal_data_of_the_explanation_counts_too():
    found = issues("A scan.", "As jane@example.org wrote, the border is jagged.")
    assert found[IssueCode.PERSONAL_DATA] == "e-mail address in the explanation"


def test_what_is_off_is_not_looked_for():
    off = CurationSettings(severity=SeveritySettings(**dict.fromkeys(vars(SeveritySettings()), "off")))
    text = "Label: benign. A scan of 3 mm for jane@example.org."
    explanation = "'Rash on arms' of 4 mm makes it malignant."
    assert issues(text, explanation, "benign", settings=off) == {}
    assert len(issues(text, explanation, "benign")) == 5


@pytest.mark.parametrize("piece", ["a ", "1", "(", "'", "no ", "label: ", "\u0301", "\ud800", "+49 ", "A1"], ids=ascii)
def test_hostile_text_takes_linear_time_and_raises_nothing(piece):
    seconds = []
    for count in (5_000, 20_000):
        start = time.process_time()
        issues(piece * count, piece * count, "benign", evidence=())
        seconds.append(time.process_time() - start)
    assert seconds[1] < 8 * seconds[0] + 0.5, "four times the text: linear takes 4 times as long, quadratic 16"


SIGNS = ["cough", "fever", "rash", "other"]
COMPLETE, OPEN = {"cough": 1.0, "rash": 1.0, OTHERS: 0.0}, {"cough": 1.0, "rash": 0.4}


@pytest.mark.parametrize(
    ("explanation", "answers", "detail"),
    [
        ("It coughs at night, so cough; red arms suggest a rash.", COMPLETE, None),
        ("The barking sound is a cough, and there is no fever.", COMPLETE, None),
        ("A rash is seen. Parents feared a fever.", COMPLETE, None),
        ("The barking sound is a cough, the hot skin suggests fever.", COMPLETE, "fever, which the row does not have"),
        ("Hot skin: a fever.", COMPLETE, "fever, which the row does not have"),
        ("It barks, which is a cough, but not a rash.", COMPLETE, "denies rash"),
        ("On the other side of the arm.", COMPLETE, None),
        ("A cough. The label is other.", COMPLETE, "other, which the row does not have"),
        ("Hot skin suggests fever, the arms a rash.", OPEN, None),
        ("There is no cough.", OPEN, "denies cough"),
        ("Nothing speaks for a cough, and there are no signs of fever or rash.", {OTHERS: 0.0}, None),
        ("No fever, other noises or a bluish shade.", {**COMPLETE, "fever": 0.0}, None),
        ("There is no noise. The arms suggest a fever.", COMPLETE, "fever, which the row does not have"),
        ("It is a cough.", {OTHERS: 0.0}, "cough, which the row does not have"),
        ("It is a cough.", None, None),
    ],
)
def test_each_class_of_a_row_with_several_labels_is_a_claim_of_its_own(explanation, answers, detail):
    found = issues("The child barks at night.", explanation, answers=answers, labels=SIGNS)
    assert found.get(IssueCode.NAMES_OTHER_CLASS) == detail


def test_a_text_that_says_one_of_several_labels_is_found():
    answers = {"answers": COMPLETE, "labels": SIGNS}
    assert issues("It barks. Labels: rash", "Red arms.", **answers)[IssueCode.LABEL_IN_TEXT] == "Labels: rash"
    assert IssueCode.LABEL_IN_TEXT not in issues("It barks. Labels: fever", "Red arms.", **answers)
    assert IssueCode.LABEL_IN_TEXT not in issues("Label: rash", "Red arms.", answers=OPEN, labels=SIGNS)
