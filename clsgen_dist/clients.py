"""Predictions from an engine that serves a folded model, such as vLLM: one call for probability and explanation.

    from clsgen_dist.clients import FoldedModel

    model = FoldedModel("runs/served/folded")    # reads clsgen.json and the tokenizer, no weights
    prediction = model.ask("http://localhost:8000/v1/completions", "a text", model="folded")

The folder is one that ``clsgen export --fold true`` wrote. Prompts are sent as token ids: plain text could hold the
name of a token that means something to the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from clsgen_dist.data.encode import Encoder
from clsgen_dist.data.prompt import saved_prompt
from clsgen_dist.errors import ModelError, ServerError, first_line
from clsgen_dist.hf_export.artifact import ModelCard, read_head
from clsgen_dist.inference.prediction import AnswerReader, Prediction
from clsgen_dist.inference.raw_predictions import RawPrediction

_NEVER = -100.0
"""Logit bias of tokens that must not be written."""


class FoldedModel:
    """What is needed beside the engine: prompt, bias, calibration and decisions of a folded model.

    Args:
        folder: that :func:`clsgen_dist.hf_export.fold.fold` wrote.

    Raises:
        ModelError: no export, or one that is not folded.
    """

    def __init__(self, folder: str | Path) -> None:
        from transformers import AutoTokenizer

        folder = Path(folder)
        card = ModelCard.read(folder)
        if card.folded is None:
            raise ModelError(
                f"{folder} is an export whose head is not in its LM head, so an engine gives no class logits; fold it: "
                "clsgen export --fold true"
            )
        self.card, self.folded = card, card.folded
        self.reader = AnswerReader(card)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        prompt = saved_prompt(card.prompt, tokenizer, system=card.system, question=card.question)
        self.encoder = Encoder(tokenizer, max_prompt_length=card.max_prompt_length, rendered=prompt)
        _, self._bias_K = read_head(folder, card)

    def request(self, text: str, *, model: str, max_new_tokens: int | None = None) -> dict[str, Any]:
        """The body of ``POST /v1/completions`` (vLLM 0.32) for a text.

        Args:
            text: to classify.
            model: the name under which the engine serves the folder.
            max_new_tokens: longest explanation in tokens; None: the longest that training allowed; at least 1.
        """
        ids, _ = self.encoder.prompt(text)
        return {
            "model": model,
            "prompt": ids.tolist(),
            "max_tokens": self.card.max_explanation_length if max_new_tokens is None else max_new_tokens,
            "temperature": 0,
            "stop_token_ids": [self.encoder.end_token],
            "logprobs": 1,
            "logprob_token_ids": self.folded.all_rows,
            "return_tokens_as_token_ids": True,
            "logit_bias": {str(row): _NEVER for row in self.folded.all_rows},
        }

    def read(self, answer: dict[str, Any], text: str) -> Prediction:
        """The prediction for ``text`` from the engine's answer to :meth:`request`.

        Raises:
            ModelError: the answer has no log-probabilities of the folded rows, or they are not finite.
        """
        [choice] = answer["choices"]
        found = (choice.get("logprobs") or {}).get("top_logprobs") or [{}]
        ids = {name: name.removeprefix("token_id:") for name in found[0] if name.startswith("token_id:")}
        log_probs = {int(token): found[0][name] for name, token in ids.items()}
        if missing := [row for row in self.folded.all_rows if row not in log_probs]:
            raise ModelError(
                f"the engine's answer has no log-probability of {len(missing)} of {len(self.folded.all_rows)} folded "
                f"rows, first of token {missing[0]}; expected an engine that takes logprob_token_ids (vLLM 0.32)"
            )
        logits_K = self.folded.logits(log_probs, self._bias_K)
        if not bool(torch.isfinite(logits_K).all()):
            raise ModelError(f"the engine's class logits are {logits_K.tolist()}, expected finite numbers")
        raw = RawPrediction(
            first=tuple(logits_K.tolist()),
            after=None,
            explanation=str(choice["text"]).strip(),
            truncated=self.encoder.prompt(text)[1],
        )
        return self.reader.read(raw)

    def ask(self, url: str, text: str, *, model: str, max_new_tokens: int | None = None) -> Prediction:
        """The engine's prediction for a text; ServerError if it does not answer, or refuses."""
        import requests

        body = self.request(text, model=model, max_new_tokens=max_new_tokens)
        try:
            answer = requests.post(url, json=body, timeout=600)
        except requests.RequestException as error:
            raise ServerError(
                f"{url} does not answer ({first_line(error)}); start the engine, or fix the address"
            ) from None
        if not answer.ok:
            raise ServerError(f"{url} answered {answer.status_code}: {answer.text[:300]}")
        return self.read(answer.json(), text)
