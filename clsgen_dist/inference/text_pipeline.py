"""A model as transformers' pipelines are used.

pipe = pipeline("models/mine")
pipe("a text")                                # [{"label": "malignant", "score": 0.78, "explanation": …}]
pipe(["a text", "another"], batch_size=32)    # one dictionary a text
for answer in pipe(texts_of_a_stream): …      # any iterable, lazily, some at a time
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.errors import DataError
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.prediction import Prediction

_WINDOW = 8
"""Batches of an iterable that are sorted by length together."""


class DualHeadPipeline:
    """Answers of a model as dictionaries.

    Args:
        predictor: the model.
        batch_size: texts decoded together.
        explain: decode explanations too.
        decoding: how they are written; None: as the model's folder says.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        batch_size: int = 16,
        explain: bool = True,
        decoding: DecodingSettings | None = None,
    ) -> None:
        self.predictor = predictor
        self._defaults = {"batch_size": batch_size, "explain": explain, "decoding": decoding}

    def __call__(self, inputs: str | list[str] | Iterable[str], **options: Any) -> Any:
        """A list of dictionaries for a text or a list of texts, an iterator of them for any other iterable.

        Args:
            inputs: texts.
            options: ``batch_size``, ``explain``, ``decoding`` and ``max_new_tokens``, for this call.

        Returns:
            ``label``; ``score``, its calibrated probability (multi-label: of each class decided); ``probabilities``,
            and what else :meth:`~clsgen_dist.inference.prediction.Prediction.to_json` gives.

        Raises:
            DataError: an input is no text.
        """
        chosen = self._defaults | options
        if isinstance(inputs, str):
            return self._answers([inputs], chosen)
        if isinstance(inputs, (list, tuple)):
            return self._answers(list(inputs), chosen)
        return self._stream(iter(inputs), chosen)

    def _stream(self, inputs: Iterator[str], options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        while texts := list(islice(inputs, _WINDOW * options["batch_size"])):
            yield from self._answers(texts, options)

    def _answers(self, texts: list[str], options: dict[str, Any]) -> list[dict[str, Any]]:
        for place, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"input {place} is {text!r}, expected a text")
        return [_answer(prediction) for prediction in self.predictor.predict(texts, **options)]


def pipeline(model: str | Path, device: str | None = None, **options: Any) -> DualHeadPipeline:
    """The pipeline of an exported model.

    Args:
        model: folder that :func:`clsgen_dist.export` wrote.
        device: torch device; None uses CUDA if available, else the CPU.
        options: those of :class:`DualHeadPipeline`.

    Raises:
        ModelError: ``model`` is no exported folder.
    """
    return DualHeadPipeline(Predictor(model, device), **options)


def _answer(prediction: Prediction) -> dict[str, Any]:
    p, label = prediction.probabilities, prediction.label
    score = p[label] if isinstance(label, str) else {name: p[name] for name in label}
    return {"label": label, "score": score, **prediction.to_json()}
