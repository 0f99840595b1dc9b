"""Settings of measures that ask something outside the model."""

from __future__ import annotations

from dataclasses import dataclass

from clsgen_dist.io.value_ranges import NonNegativeInt, PositiveFloat, PositiveInt


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """A language model behind an OpenAI-compatible server, which is asked about explanations."""

    base_url: str = ""
    """Address of the server, without `/chat/completions`: http://localhost:8000/v1. Rows are sent there. The key is
    read from the environment variable OPENAI_API_KEY."""
    model: str = ""
    """Name of the model, as the server knows it."""
    rows: PositiveInt = 50
    """Rows whose explanations are judged, evenly over the decisions."""
    timeout: PositiveFloat = 120.0
    """Seconds to wait for a connection, and for an answer."""
    retries: NonNegativeInt = 5
    """More tries of a request after 429, a server's error or a lost connection: at once, then after 2 s, 4 s, and so on."""
