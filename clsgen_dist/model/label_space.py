"""What a classification head predicts: class names in the order of its logits."""

from __future__ import annotations

from dataclasses import dataclass

from clsgen_dist.errors import SettingsError


@dataclass(frozen=True)
class LabelSpace:
    """Single-label classes (binary is two of them), scored by a softmax."""

    names: tuple[str, ...]
    """Class names; the index is the logit's."""
    positive: str
    """Binary: the class whose probability is reported, and F1's positive."""

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise SettingsError(
                f"the label space is {list(self.names)}, expected two classes or more; check the label column, "
                "or name the classes in data.labels"
            )
        if self.positive not in self.names:
            raise SettingsError(f"positive label {self.positive!r} is not one of {list(self.names)}; fix it")

    @classmethod
    def of(cls, names: list[str], positive: str | None = None) -> LabelSpace:
        """The space of ``names``; the positive class defaults to the last."""
        return cls(tuple(names), positive or (names[-1] if names else ""))

    @property
    def positive_index(self) -> int:
        """Index of the positive class's logit."""
        return self.names.index(self.positive)

    def __len__(self) -> int:
        return len(self.names)
