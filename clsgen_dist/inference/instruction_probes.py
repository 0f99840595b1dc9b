"""Short instructions whose answers can be checked, to see whether a trained model still follows instructions.

Facts, arithmetic, copying and format: what a small instruction-tuned model can mostly do. They are compared with the
same model before training, not with other models.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Probe:
    """An instruction, and a pattern that the right answer has."""

    instruction: str
    pattern: str
    """Regular expression, searched in the answer without regard to case; a line's beginning and end match ^ and $."""

    def is_right(self, answer: str) -> bool:
        """Whether the answer has the pattern."""
        return re.search(self.pattern, answer.strip(), flags=re.IGNORECASE | re.MULTILINE) is not None


def _fact(question: str, answer: str) -> Probe:
    return Probe(question, rf"\b{answer}\b")


PROBES = (
    _fact("What is the capital of France?", "Paris"),
    _fact("What is the capital of Japan?", "Tokyo"),
    _fact("What is the capital of Italy?", "Rome"),
    _fact("Which planet do we live on?", "Earth"),
    _fact("Which planet is closest to the sun?", "Mercury"),
    _fact("How many days are in a week?", "(7|seven)"),
    _fact("How many months are in a year?", "(12|twelve)"),
    _fact("How many legs does a spider have?", "(8|eight)"),
    _fact("What is the chemical formula of water?", "H2O|H₂O"),
    _fact("Who wrote Romeo and Juliet?", "Shakespeare"),
    _fact("What language is spoken in Brazil?", "Portuguese"),
    _fact("What is the opposite of hot?", "cold"),
    _fact("What is the opposite of up?", "down"),
    _fact("What is the plural of mouse?", "mice"),
    _fact("What colour do you get when you mix blue and yellow?", "green"),
    _fact("What is frozen water called?", "ice"),
    _fact("What is 2 + 3?", "(5|five)"),
    _fact("What is 10 - 4?", "(6|six)"),
    _fact("What is 3 times 4?", "(12|twelve)"),
    _fact("What is half of 20?", "(10|ten)"),
    _fact("What comes after Monday?", "Tuesday"),
    _fact("Which is larger, 17 or 71?", "71"),
    _fact("Which letter comes after A in the alphabet?", "B"),
    _fact("What is the first letter of the word 'table'?", "T"),
    Probe("Answer with one word: is the sky blue, yes or no?", r"^yes\W*$"),
    Probe("Answer with one word: is fire cold, yes or no?", r"^no\W*$"),
    Probe("Repeat this word: garden", r"\bgarden\b"),
    Probe("Repeat this sentence: The train is late.", r"the train is late"),
    Probe("Write the word 'hello' in capital letters.", r"(?-i:\bHELLO\b)"),
    Probe("List three fruits, separated by commas.", r"\w+, ?(and )?\w+, ?(and )?\w+"),
    Probe("Count from 1 to 5.", r"1\D+2\D+3\D+4\D+5"),
    Probe("Translate to Spanish: good morning", r"\bbuenos d[ií]as\b"),
)
