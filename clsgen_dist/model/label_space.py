"""The classes of a classification head, in the order of its logits."""

from __future__ import annotations

from dataclasses import dataclass

from clsgen_dist.errors import SettingsError


@dataclass(frozen=True)
class LabelSpace:
    """Single-label classes with a softmax (binary: two classes)."""

    names: tuple[str, ...]
    """Class names, in the order of the logits."""
    positive: str
    """Binary: the class whose probability is reported, and the positive class of F1."""

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise SettingsError(
                f"the label space is {list(self.names)}, expected two or more classes; check the label column, "
                "or name the classes in data.labels"
            )
        if self.positive not in self.names:
            raise SettingsError(
                f"positive label {self.positive!r} is not one of {list(self.names)}; fix data.positive_label"
            )

    @classmethod
    def of(cls, names: list[str], positive: str | None = None) -> LabelSpace:
        """The label space of ``names``; the positive class defaults to the last."""
        return cls(tuple(names), positive or (names[-1] if names else ""))

    @property
    def positive_index(self) -> int:
        """Index of the positive class's logit."""
        return self.names.index(self.positive)

    def __len__(self) -> int:
        return len(self.names)
