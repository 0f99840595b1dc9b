"""Predictions by an engine that serves a folded model, such as vLLM: one call gives probability and explanation.

    from clsgen_dist.clients import EnginePredictor

    predictor = EnginePredictor("runs/served/folded", "http://localhost:8000")      # no weights are loaded
    [prediction] = predictor.predict(["a text"])

The folder is one that ``clsgen export --fold true`` wrote. Prompts are sent as token ids: plain text could hold the
name of a token that means something to the model. Calls that an engine is too busy for are repeated; an engine's key
is read from ``OPENAI_API_KEY``. SGLang's own interface is in docs/howto/export_and_serve.md.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ReadTimeoutError
from urllib3.util.retry import Retry

from clsgen_dist.data.encode import Ids
from clsgen_dist.decoding.length import LengthBudget, whole_sentences
from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.errors import ModelError, ServerError, SettingsError, first_line
from clsgen_dist.explanations.text_units import sentence_ends
from clsgen_dist.hf_export.artifact import ModelCard, encoder_of, read_head
from clsgen_dist.inference.batch_decoder import Task, draw_seed, redraw_temperature, require_usable
from clsgen_dist.inference.predict import PromptBatches
from clsgen_dist.inference.prediction import AnswerReader, Prediction
from clsgen_dist.inference.raw_predictions import RawPrediction, require_explained, require_finite

_NEVER = -100.0
"""Logit bias of tokens that must not be written."""
_TRIES, _SECONDS = 6, 600
"""Of a call (four tries if nobody listens); the waits double from one second, unless the engine says how long."""
_MOST_WAIT = 60
"""Seconds that an engine can make a call wait before it is repeated."""
_CONNECTIONS = 256


class RefusedError(ServerError):
    """The engine does not answer this text, and may answer others."""


class _Retry(Retry):
    """Repeats what was refused or cut, but not what was waited for in vain."""

    def increment(
        self, method: Any = None, url: Any = None, response: Any = None, error: Any = None, *rest: Any, **options: Any
    ) -> Any:
        if isinstance(error, ReadTimeoutError):
            raise error
        return super().increment(method, url, response, error, *rest, **options)


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
        self.encoder = encoder_of(self.card, AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
        _, self._bias_K = read_head(folder, self.card)
        self._url = f"{url.rstrip('/').removesuffix('/completions').removesuffix('/v1')}/v1"
        self._session = requests.Session()
        if key := os.environ.get("OPENAI_API_KEY", "").strip():
            self._session.headers["Authorization"] = f"Bearer {key}"
        retry = _Retry(
            total=_TRIES - 1,
            connect=min(3, _TRIES - 1),
            backoff_factor=0.5,
            status_forcelist=(429, 500, 502, 503, 504),
            allowed_methods=None,
            raise_on_status=False,
            retry_after_max=_MOST_WAIT,
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
        decoding: DecodingSettings | None = None,
        ids: Sequence[str] | None = None,
    ) -> list[Prediction]:
        """Predictions in the order of the texts; arguments as for :meth:`clsgen_dist.Predictor.predict`.

        ``batch_size`` is how many calls are on their way at a time.
        """
        batches = self.prompt_batches(texts, batch_size)
        found: dict[int, RawPrediction] = {}
        for number in range(len(batches.rows)):
            found |= self.compute(batches, number, explain=explain, max_new_tokens=max_new_tokens, decoding=decoding)
        raws = [found[index] for index in range(len(texts))]
        require_explained(raws, ids)
        require_finite(raws, ids)
        return [self.read(raw) for raw in raws]

    def prompt_batches(self, texts: Sequence[str], batch_size: int) -> PromptBatches:
        """The prompts of the texts, and which of them are asked together."""
        places = range(len(texts))
        rows = [list(places[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
        return PromptBatches(list(texts), [self.encoder.prompt(text) for text in texts], rows)

    def decoding(self, settings: DecodingSettings | None = None) -> DecodingSettings:
        """How explanations are written: as said, else as the folder says.

        Raises:
            SettingsError: the settings do not go together, or need what only :class:`clsgen_dist.Predictor` can do.
        """
        settings = require_usable(settings or self.card.decoding_settings, self.card.decide)
        plain = DecodingSettings()
        here_only = ("tell", "state_decision", "quote_evidence", "forbidden", "grammar", "candidates")
        asked = [name for name in here_only if getattr(settings, name) != getattr(plain, name)]
        if asked or settings.sentences[0]:
            name = f"{asked[0]}" if asked else "length=detailed"
            raise SettingsError(
                f"decoding.{name} is not possible with an engine, which writes the text itself; leave it out, or use "
                "the model without --engine"
            )
        return settings

    def compute(
        self,
        batches: PromptBatches,
        number: int,
        *,
        explain: bool,
        max_new_tokens: int | None = None,
        decoding: DecodingSettings | None = None,
    ) -> dict[int, RawPrediction]:
        """What the engine computes for each text of a batch, by the text's index."""
        texts, prompts = batches.texts, batches.prompts
        options: Any = {"decoding": self.decoding(decoding), "explain": explain, "max_new_tokens": max_new_tokens}

        def one(row: int) -> RawPrediction:
            task = self.task(texts[row], prompts[row], **options)
            try:
                raw = self.answer(task)
            except RefusedError as error:  # of this text; the others may be answered
                raw = RawPrediction((), None, None, task.truncated, error=first_line(error))
            assert raw is not None
            return raw

        rows = batches.rows[number]
        with ThreadPoolExecutor(min(len(rows), _CONNECTIONS)) as pool:
            return dict(zip(rows, pool.map(one, rows), strict=True))

    def task(
        self,
        text: str,
        prompt: tuple[Ids, bool],
        *,
        decoding: DecodingSettings,
        explain: bool = True,
        max_new_tokens: int | None = None,
    ) -> Task:
        """A text for :meth:`answer`."""
        longest = (self.card.max_explanation_length if max_new_tokens is None else max_new_tokens) if explain else 0
        return Task(text, *prompt, decoding, longest, explain=explain)

    def answer(
        self, task: Task, is_void: Callable[[], bool] = lambda: False, until: float = math.inf
    ) -> RawPrediction | None:
        """What the engine computes, drawn anew while it contradicts the decision; streamed if it may become void.

        Args:
            task: of :meth:`task`; it is told the decision, and the pieces of the explanation if it listens.
            is_void: whether nobody waits any more, asked at each piece of the answer: the engine then stops to write.
            until: when the answer is late, on the clock of ``time.monotonic``.

        Returns:
            None if the answer is void or late.
        """
        settings = task.decoding

        def is_over() -> bool:
            return is_void() or time.monotonic() > until

        while True:
            body = self.request(task.prompt, max(1, task.longest), settings, task.redraws)
            try:
                raw = self._answered(body, task, is_over, until)
            except ServerError:
                if not is_over():
                    raise
                raw = None
            if raw is None:
                return None
            self._tell_reading(task, raw.first)
            again = task.explain and task.reading is not None and task.redraws < settings.redraws
            if not (again and task.reading and self.reader.contradicts(raw.explanation or "", task.reading)):
                return replace(raw, redraws=task.redraws)
            task.redraws += 1
            if task.on_redraw is not None:
                task.on_redraw()

    def _answered(
        self, body: dict[str, Any], task: Task, is_over: Callable[[], bool], until: float
    ) -> RawPrediction | None:
        """One answer of the engine; None if it is over before."""
        settings, timeout = task.decoding, max(0.01, min(_SECONDS, until - time.monotonic()))
        budget = LengthBudget(settings.max_words, settings.sentences[1])
        if task.explain and (task.on_text is not None or math.isfinite(until)):
            answer = self._streamed(body, task, budget, is_over, timeout)
        else:
            answer = self._ask("POST", "completions", timeout, json=body)
        if answer is None:
            return None
        task.tokens_written += (answer.get("usage") or {}).get("completion_tokens", 0)
        return self.raw(
            answer, explain=task.explain, truncated=task.truncated, budget=budget, is_free=settings.form is None
        )

    def _tell_reading(self, task: Task, first: tuple[float, ...]) -> None:
        """Tell the decision, once, where it is one."""
        if task.reading is None and all(map(math.isfinite, first)):
            task.reading = self.reader.first(first)
            if task.on_reading is not None:
                task.on_reading(task.reading)

    def _streamed(
        self, body: dict[str, Any], task: Task, budget: LengthBudget, is_over: Callable[[], bool], timeout: float
    ) -> dict[str, Any] | None:
        """The engine's answer, whose pieces were told as they came; None if it is over before."""
        choice: dict[str, Any] = {"text": "", "logprobs": None, "finish_reason": None}
        told, usage, pieces = "", None, 0
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with self._send("POST", "completions", timeout, json=streamed, stream=True) as answer:
            for chunk in self._chunks(answer):
                if is_over():
                    return None
                usage = chunk.get("usage") or usage
                [piece] = chunk["choices"] or [{"text": ""}]
                pieces += bool(chunk["choices"])
                if choice["logprobs"] is None and piece.get("logprobs"):
                    choice["logprobs"] = piece["logprobs"]
                    self._tell_reading(task, self._first_logits(choice))
                choice["text"] += piece["text"]
                choice["finish_reason"] = piece.get("finish_reason") or choice["finish_reason"]
                kept = budget.kept(choice["text"])
                text = (choice["text"] if kept is None else kept).strip()
                if kept is None and (task.holds_back or budget.is_bounded) and not choice["finish_reason"]:
                    text = whole_sentences(text) if sentence_ends(text) else ""
                if task.on_text is not None and text.startswith(told) and len(text) > len(told):
                    task.on_text(text[len(told) :])
                    told = text
                if kept is not None:
                    break
            else:
                if choice["finish_reason"] is None:
                    raise ServerError(f"{self._url} ended its answer in the middle; look at the engine's log")
        return {"choices": [choice], "usage": usage or {"completion_tokens": pieces}}

    def _chunks(self, answer: requests.Response) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed answer; ServerError for what is none, and for a stream that breaks."""
        try:
            for line in answer.iter_lines():
                data = line.decode().removeprefix("data:").strip()
                if not data or data == "[DONE]":
                    continue
                chunk = json.loads(data)
                if "choices" not in chunk:
                    raise ServerError(f"{self._url} answered {data[:300]}")
                yield chunk
        except (requests.RequestException, ValueError, RecursionError) as error:
            raise ServerError(f"{self._url} broke off ({first_line(error)}); look at the engine's log") from None

    def read(self, raw: RawPrediction) -> Prediction:
        """The prediction, with the model's calibration and thresholds; of logits that are finite."""
        return self.reader.read(raw)

    def request(
        self, ids: Ids, new_tokens: int, settings: DecodingSettings | None = None, redraws: int = 0
    ) -> dict[str, Any]:
        """The body of ``POST /v1/completions``.

        Args:
            ids: the prompt.
            new_tokens: most tokens of the explanation, at least 1.
            settings: how it is written; None: greedily.
            redraws: how often it was drawn before.
        """
        settings = settings or DecodingSettings()
        body = {
            "model": self._model,
            "prompt": ids.tolist(),
            "max_tokens": new_tokens,
            "temperature": redraw_temperature(settings, redraws),
            "seed": draw_seed(settings.seed, redraws),
            "stop_token_ids": [self.encoder.end_token],
            "logprobs": 1,
            "logprob_token_ids": self.folded.all_rows,
            "return_tokens_as_token_ids": True,
            "logit_bias": {str(row): _NEVER for row in self.folded.all_rows},
        }
        if body["temperature"]:
            body |= {"top_p": settings.top_p, "min_p": settings.min_p}
        if settings.json_schema is not None:
            body["structured_outputs"] = {"json": settings.json_schema}
        elif settings.regex is not None:
            body["structured_outputs"] = {"regex": settings.regex}
        return body

    def raw(
        self,
        answer: dict[str, Any],
        *,
        explain: bool,
        truncated: bool,
        budget: LengthBudget | None = None,
        is_free: bool = True,
    ) -> RawPrediction:
        """The head's logits and the explanation from the engine's answer to :meth:`request`.

        Raises:
            ServerError: the answer has no log-probabilities of the folded rows.
        """
        [choice] = answer["choices"]
        text, cut = str(choice["text"]), explain and choice.get("finish_reason") == "length"
        if budget is not None and (kept := budget.kept(text)) is not None:
            text, cut = kept, False
        elif cut and is_free:
            text = whole_sentences(text)
        return RawPrediction(
            first=self._first_logits(choice),
            after=None,
            explanation=text.strip() if explain else None,
            truncated=truncated,
            cut=cut,
        )

    def _first_logits(self, choice: dict[str, Any]) -> tuple[float, ...]:
        """The class logits from the log-probabilities at the prompt's end; ServerError without them."""
        first = ((choice.get("logprobs") or {}).get("top_logprobs") or [{}])[0]
        log_probs = {
            int(name.removeprefix("token_id:")): value for name, value in first.items() if name.startswith("token_id:")
        }
        if missing := [row for row in self.folded.all_rows if row not in log_probs]:
            raise ServerError(
                f"{self._url} gave no log-probability of {len(missing)} of {len(self.folded.all_rows)} folded rows, "
                f"first of token {missing[0]}; expected an engine that takes logprob_token_ids (vLLM 0.32)"
            )
        return tuple(self.folded.logits(log_probs, self._bias_K).tolist())

    def _ask(self, method: str, path: str, timeout: float = _SECONDS, **content: Any) -> Any:
        answer = self._send(method, path, timeout, **content)
        try:
            return answer.json()
        except (ValueError, RecursionError):
            raise ServerError(f"{self._url}/{path} answered what is no JSON: {answer.text[:300]}") from None

    def _send(self, method: str, path: str, timeout: float, **content: Any) -> requests.Response:
        url = f"{self._url}/{path}"
        try:
            answer = self._session.request(method, url, timeout=timeout, **content)
        except requests.RequestException as error:
            raise ServerError(f"{url} does not answer ({first_line(error)}); start the engine there") from None
        if not answer.ok:
            kind = RefusedError if answer.status_code in (400, 413, 422) else ServerError
            raise kind(f"{url} answered {answer.status_code}: {answer.text[:300]}")
        return answer
