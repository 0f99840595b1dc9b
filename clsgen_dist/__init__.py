"""Dual-head training of large language models: a probability one can act on, and a reason one can read.

    from clsgen_dist import load_settings, train, export, calibrate, evaluate, Predictor

    settings = load_settings("configs/recipe.yaml", {"train.max_steps": 100})
    train(settings)                                           # one process, or one of many under a launcher
    export(settings.output_dir, "model")                      # a Hugging Face folder with its classification head
    calibrate("model", "rows/dev.jsonl")
    print(evaluate("model", "rows/test.jsonl").text())
    [answer] = Predictor("model").predict(["a text"])         # .label .probabilities .explanation

Importing this package is instant: each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clsgen_dist.config import Settings, load_settings
    from clsgen_dist.hf_export.export import export
    from clsgen_dist.inference.calibrate import calibrate
    from clsgen_dist.inference.evaluate import evaluate
    from clsgen_dist.inference.predict import Predictor
    from clsgen_dist.inference.text_classifier import TextClassifier
    from clsgen_dist.inference.text_pipeline import pipeline
    from clsgen_dist.training.trainer import train

__version__ = "0.1.0"
__all__ = [
    "Predictor",
    "Settings",
    "TextClassifier",
    "calibrate",
    "evaluate",
    "export",
    "load_settings",
    "pipeline",
    "train",
]
_HOME = {
    "Predictor": "inference.predict",
    "Settings": "config",
    "TextClassifier": "inference.text_classifier",
    "calibrate": "inference.calibrate",
    "evaluate": "inference.evaluate",
    "export": "hf_export.export",
    "load_settings": "config",
    "pipeline": "inference.text_pipeline",
    "train": "training.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
