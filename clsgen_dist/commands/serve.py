"""``clsgen serve``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clsgen_dist.io.value_ranges import Port, PositiveFloat, PositiveInt


def run(
    model: str,
    host: str = "127.0.0.1",
    port: Port = 8000,
    name: str | None = None,
    tokens_file: str | None = None,
    without_tokens: bool = False,
    max_batch: PositiveInt = 16,
    max_queue: PositiveInt = 256,
    max_characters: PositiveInt = 200_000,
    max_body: PositiveInt = 4_000_000,
    deadline: PositiveFloat = 120.0,
    log_texts: bool = False,
    engine: str | None = None,
) -> None:
    """Serve an exported model: a web page at /, /v1/classify, /v1/explain, /v1/batch, and OpenAI's chat and decisions.

    TERM finishes what is at work and ends. A new `clsgen calibrate` of the folder is taken up without a restart.

    Args:
        model: Folder that `clsgen export` wrote.
        host: Address to listen on; others than this machine need tokens.
        port: Port to listen on.
        name: What clients call the model; none: the folder's name.
        tokens_file: File of bearer tokens, one a line; others in the environment variable CLSGEN_TOKENS, divided by commas.
        without_tokens: Let anybody in who reaches the address.
        max_batch: Texts answered at a time.
        max_queue: Texts that may wait; more are refused with status 429 and Retry-After.
        max_characters: Longest text.
        max_body: Largest request in bytes.
        deadline: Seconds within which a text is answered, or refused with status 504.
        log_texts: Write texts and answers into the log; they may hold personal data.
        engine: Address of a server that serves the folder, like http://localhost:9000 (vLLM, a folded export): it computes instead of this process.
    """  # noqa: E501
    from clsgen_dist.errors import SettingsError

    try:
        from clsgen_dist.serving.run import ServeOptions, serve
    except ImportError as error:
        raise SettingsError(
            f"clsgen serve needs {error.name}; install it with: pip install 'clsgen-dist[serve]'"
        ) from None
    options = ServeOptions(
        host=host,
        port=port,
        name=name,
        tokens_file=tokens_file,
        without_tokens=without_tokens,
        max_batch=max_batch,
        max_queue=max_queue,
        max_characters=max_characters,
        max_body=max_body,
        deadline=deadline,
        log_texts=log_texts,
    )
    serve(model, options, engine=engine)
