"""For schemathesis: generated requests get past the checks that no schema can state, to what lies behind them."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """The one model's name, messages of the user, one question of the right type: in two of three requests."""
    if not isinstance(body, dict) or len(str(body)) % 3 == 0:
        return body
    if isinstance(body.get("model"), str):
        body["model"] = "served"
    if isinstance(messages := body.get("messages"), list) and messages and isinstance(messages[0], dict):
        body["messages"] = [{**messages[0], "role": "user"} if "role" in messages[0] else messages[0]]
    if isinstance(questions := body.get("questions"), list):
        body["questions"] = [_plain(question) for question in questions]
    return body


def _plain(question: Any) -> Any:
    if not isinstance(question, dict) or not isinstance(question.get("instructions", ""), str):
        return question
    return {**question, "instructions": "", **({"type": "predicate"} if question.get("type") == "score" else {})}
