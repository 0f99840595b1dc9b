"""Predictions by an engine that serves a folded model, such as vLLM: one call gives probability and explanation.

    from clsgen_dist.clients import EnginePredictor

    predictor = EnginePredictor("runs/served/folded", "http://localhost:8000")      # no weights are loaded
    [prediction] = predictor.predict(["a text"])

The folder is one that ``clsgen export --fold true`` wrote. Prompts are sent as token ids: plain text could hold the
name of a token that means something to the model. Calls that an engine is too busy for are repeated. SGLang's own
interface is in docs/howto/export_and_serve.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from clsgen_dist.data.encode import Ids
from clsgen_dist.errors import ModelError, ServerError, first_line
from clsgen_dist.hf_export.artifact import ModelCard, encoder_of, read_head
from clsgen_dist.inference.predict import PromptBatches
from clsgen_dist.inference.prediction import AnswerReader, Prediction
from clsgen_dist.inference.raw_predictions import RawPrediction, require_finite

_NEVER = -100.0
"""Logit bias of tokens that must not be written."""
_TRIES, _SECONDS = 6, 600
"""Of a call (four tries if nobody listens); the waits double from one second, unless the engine says how long."""
_CONNECTIONS = 256


class EnginePredictor:
    """An engine in the place of :class:`clsgen_dist.Predictor`, for texts and for files.

    Args:
        folder: that :func:`clsgen_dist.hf_export.fold.fold` wrote.
        url: of an OpenAI-compatible server that takes ``logprob_token_ids`` (vLLM 0.32), like ``http://host:8000``.
        model: the name under which it serves the folder; None: the first that it names.

    Raises:
        ModelError: the folder is no export, or one that is not folded.
        ServerError: the server does not answer, or refuses.
    """

    def __init__(self, folder: str | Path, url: str, model: str | None = None) -> None:
        from transformers import AutoTokenizer

        folder = Path(folder)
        self.card = ModelCard.read(folder)
        if self.card.folded is None:
            raise ModelError(
                f"{folder} is an export whose head is not in its LM head, so an engine gives no class logits; fold it: "
                "clsgen export --fold true"
            )
        self.folded, self.reader = self.card.folded, AnswerReader(self.card)
        self.encoder = encoder_of(self.card, AutoTokenizer.from_pretrained(folder))
        _, self._bias_K = read_head(folder, self.card)
        self._url = f"{url.rstrip('/').removesuffix('/completions').removesuffix('/v1')}/v1"
        self._session = requests.Session()
        retry = Retry(
            total=_TRIES - 1,
            connect=min(3, _TRIES - 1),
            backoff_factor=0.5,
            status_forcelist=(429, 500, 502, 503, 504),
            allowed_methods=None,
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry, pool_maxsize=_CONNECTIONS))
        self._model = model or self._ask("GET", "models")["data"][0]["id"]

    def predict(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 64,
        explain: bool = True,
        max_new_tokens: int | None = None,
        ids: Sequence[str] | None = None,
    ) -> list[Prediction]:
        """Predictions in the order of the texts; arguments as for :meth:`clsgen_dist.Predictor.predict`.

        ``batch_size`` is how many calls are on their way at a time.
        """
        batches = self.prompt_batches(texts, batch_size)
        found: dict[int, RawPrediction] = {}
        for number in range(len(batches.rows)):
            found |= self.compute(batches, number, explain=explain, max_new_tokens=max_new_tokens)
        raws = [found[index] for index in range(len(texts))]
        require_finite(raws, ids)
        return [self.read(raw) for raw in raws]

    def prompt_batches(self, texts: Sequence[str], batch_size: int) -> PromptBatches:
        """The prompts of the texts, and which of them are asked together."""
        places = range(len(texts))
        rows = [list(places[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
        return PromptBatches([self.encoder.prompt(text) for text in texts], rows)

    def compute(
        self, batches: PromptBatches, number: int, *, explain: bool, max_new_tokens: int | None = None
    ) -> dict[int, RawPrediction]:
        """What the engine computes for each text of a batch, by the text's index."""
        new_tokens = (self.card.max_explanation_length if max_new_tokens is None else max_new_tokens) if explain else 1

        def one(index: int) -> RawPrediction:
            ids, truncated = batches.prompts[index]
            answer = self._ask("POST", "completions", json=self.request(ids, new_tokens))
            return self.raw(answer, explain=explain, truncated=truncated)

        rows = batches.rows[number]
        with ThreadPoolExecutor(min(len(rows), _CONNECTIONS)) as pool:
            return dict(zip(rows, pool.map(one, rows), strict=True))

    def read(self, raw: RawPrediction) -> Prediction:
        """The prediction, with the model's calibration and thresholds; of logits that are finite."""
        return self.reader.read(raw)

    def request(self, ids: Ids, new_tokens: int) -> dict[str, Any]:
        """The body of ``POST /v1/completions`` for a prompt's token ids; ``new_tokens`` is at least 1."""
        return {
            "model": self._model,
            "prompt": ids.tolist(),
            "max_tokens": new_tokens,
            "temperature": 0,
            "stop_token_ids": [self.encoder.end_token],
            "logprobs": 1,
            "logprob_token_ids": self.folded.all_rows,
            "return_tokens_as_token_ids": True,
            "logit_bias": {str(row): _NEVER for row in self.folded.all_rows},
        }

    def raw(self, answer: dict[str, Any], *, explain: bool, truncated: bool) -> RawPrediction:
        """The head's logits and the explanation from the engine's answer to :meth:`request`.

        Raises:
            ServerError: the answer has no log-probabilities of the folded rows.
        """
        [choice] = answer["choices"]
        first = ((choice.get("logprobs") or {}).get("top_logprobs") or [{}])[0]
        log_probs = {
            int(name.removeprefix("token_id:")): value for name, value in first.items() if name.startswith("token_id:")
        }
        if missing := [row for row in self.folded.all_rows if row not in log_probs]:
            raise ServerError(
                f"{self._url} gave no log-probability of {len(missing)} of {len(self.folded.all_rows)} folded rows, "
                f"first of token {missing[0]}; expected an engine that takes logprob_token_ids (vLLM 0.32)"
            )
        return RawPrediction(
            first=tuple(self.folded.logits(log_probs, self._bias_K).tolist()),
            after=None,
            explanation=str(choice["text"]).strip() if explain else None,
            truncated=truncated,
        )

    def _ask(self, method: str, path: str, **content: Any) -> Any:
        url = f"{self._url}/{path}"
        try:
            answer = self._session.request(method, url, timeout=_SECONDS, **content)
        except requests.RequestException as error:
            raise ServerError(f"{url} does not answer ({first_line(error)}); start the engine there") from None
        if not answer.ok:
            raise ServerError(f"{url} answered {answer.status_code}: {answer.text[:300]}")
        return answer.json()
