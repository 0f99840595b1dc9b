"""One part of a source, written to disk in tokens: what each worker process of a build does.

    rows of a part ──check──▶ batches of 1,024 rows ──tokenise──▶ part-00000.arrow, .rejected.jsonl, .json

The ``.json`` is written last: a part without it, or with an Arrow file of another size, is written again.

Cost: one pass over the part; memory of one batch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clsgen_dist.data.encode import token_spans
from clsgen_dist.data.example import Example
from clsgen_dist.data.reading.ingest import Noticed, add_notices, iter_rows
from clsgen_dist.data.reading.records import Part
from clsgen_dist.data.reading.rejection import Fault, RejectedRow, Rejection, write_quarantine
from clsgen_dist.data.tables.spec import TableSpec
from clsgen_dist.io.files import atomic_write

_BATCH_ROWS, _BATCH_CHARACTERS = 1024, 2**22
"""A batch ends at either limit, so that a thousand long texts are never in memory at once."""

_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "line": pa.int64(),
        "text": pa.large_string(),
        "label": pa.string(),
        "answers": pa.list_(pa.struct({"class": pa.string(), "answer": pa.float64()})),
        "difficulty": pa.float64(),
        "explanations": pa.list_(pa.large_string()),
        "rejected": pa.list_(pa.large_string()),
        "evidence": pa.list_(pa.list_(pa.int64())),
        "counter_evidence": pa.list_(pa.list_(pa.int64())),
        "text_ids": pa.list_(pa.int32()),
        "evidence_ids": pa.list_(pa.int32()),
        "counter_evidence_ids": pa.list_(pa.int32()),
        "explanation_ids": pa.list_(pa.list_(pa.int32())),
        "rejected_ids": pa.list_(pa.list_(pa.int32())),
        "id_hash": pa.uint64(),
    }
)


def part_path(folder: Path, number: int) -> Path:
    """Path of a part's files, without their suffix."""
    return folder / f"part-{number:05d}"


def is_written(part: Path) -> bool:
    """Whether a part is complete."""
    try:
        written = json.loads(part.with_name(f"{part.name}.json").read_text())
        return bool(part.with_name(f"{part.name}.arrow").stat().st_size == written["bytes"])
    except (OSError, ValueError):
        return False


def write_part(part: Part, spec: TableSpec, target: Path) -> None:
    """Write ``target.arrow``, ``target.rejected.jsonl`` and last ``target.json``, which marks the part as complete."""
    digest, evidence = hashlib.sha256(), hashlib.sha256()
    rejected: list[RejectedRow] = []
    noticed: Noticed = {}
    pending: list[Example] = []
    characters = 0
    with pa.OSFile(f"{target}.arrow", "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:

        def flush() -> None:
            batch, too_long = _record_batch(part, pending, spec, digest)
            rejected.extend(too_long)
            writer.write_batch(batch)
            pending.clear()

        for row in iter_rows(
            part, columns=spec.columns, labels=spec.labels, space=spec.space, require_target=spec.require_target
        ):
            if isinstance(row, RejectedRow):
                rejected.append(row)
                continue
            add_notices(noticed, row.notices)
            evidence.update(repr((row.evidence, row.counter_evidence)).encode())
            pending.append(row)
            characters += len(row.text) + sum(map(len, (*row.explanations, *row.rejected)))
            if len(pending) == _BATCH_ROWS or characters > _BATCH_CHARACTERS:
                flush()
                characters = 0
        if pending:
            flush()
    rejected.sort(key=lambda row: row.line)
    write_quarantine(target.with_name(f"{target.name}.rejected.jsonl"), rejected)
    written = {
        "sha256": digest.hexdigest(),
        "evidence_sha256": evidence.hexdigest(),
        "bytes": os.path.getsize(f"{target}.arrow"),
        "noticed": noticed,
    }
    atomic_write(target.with_name(f"{target.name}.json"), json.dumps(written))


def _record_batch(
    part: Part, examples: list[Example], spec: TableSpec, digest: Any
) -> tuple[pa.RecordBatch, list[RejectedRow]]:
    """The rows in tokens, added to ``digest``, and the rows whose explanation is too long."""
    texts = spec.tokens_of([e.text for e in examples])
    flat = iter(spec.tokens_of([x.strip() for e in examples for x in (*e.explanations, *e.rejected)]))
    rows: list[tuple[Example, list[int], list[list[int]], list[list[int]]]] = []
    too_long: list[RejectedRow] = []
    for example, text_ids in zip(examples, texts, strict=True):
        explanation_ids = [[*next(flat), spec.end_token] for _ in example.explanations]
        rejected_ids = [[*next(flat), spec.end_token] for _ in example.rejected]
        longest = max(map(len, (*explanation_ids, *rejected_ids)), default=0)
        if longest > spec.max_explanation_length:
            fault = Fault(
                Rejection.LONG_EXPLANATION,
                f"{longest} tokens, longer than data.max_explanation_length {spec.max_explanation_length}",
            )
            too_long.append(RejectedRow.of(fault, part.source, example.line, example.to_json()))
            continue
        digest.update(repr((example.id, example.label, example.difficulty, text_ids, explanation_ids)).encode())
        if example.answers is not None:
            digest.update(repr(sorted(example.answers.items())).encode())
        if rejected_ids:
            digest.update(repr(rejected_ids).encode())
        rows.append((example, text_ids, explanation_ids, rejected_ids))
    columns = {
        "id": [e.id for e, *_ in rows],
        "line": [e.line for e, *_ in rows],
        "text": [e.text for e, *_ in rows],
        "label": [e.label for e, *_ in rows],
        "answers": [e.answers and [{"class": c, "answer": a} for c, a in e.answers.items()] for e, *_ in rows],
        "difficulty": [e.difficulty for e, *_ in rows],
        "explanations": [list(e.explanations) for e, *_ in rows],
        "rejected": [list(e.rejected) for e, *_ in rows],
        "evidence": [list(map(list, e.evidence)) for e, *_ in rows],
        "counter_evidence": [list(map(list, e.counter_evidence)) for e, *_ in rows],
        "text_ids": _list_array([ids for _, ids, *_ in rows]),
        "evidence_ids": _list_array([_flat_spans(spec, e.text, e.evidence) for e, *_ in rows]),
        "counter_evidence_ids": _list_array([_flat_spans(spec, e.text, e.counter_evidence) for e, *_ in rows]),
        "explanation_ids": _nested_lists([ids for *_, ids, _ in rows]),
        "rejected_ids": _nested_lists([ids for *_, ids in rows]),
        "id_hash": [_hash64(e.id) for e, *_ in rows],
    }
    arrays = [pa.array(values, type=_SCHEMA.field(name).type) if isinstance(values, list) else values
              for name, values in columns.items()]  # fmt: skip
    return pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA), too_long


def _flat_spans(spec: TableSpec, text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    return [end for span in token_spans(spec.tokens_of, text, spans) for end in span]


def _nested_lists(lists: list[list[list[int]]]) -> pa.ListArray:
    return _list_array(lists, _list_array([ids for row in lists for ids in row]))


def _list_array(lists: list[list[Any]], values: pa.Array | None = None) -> pa.ListArray:
    """An array of lists of tokens, or of lists of ``values``."""
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int32)
    if values is None:
        values = pa.array(np.fromiter(itertools.chain.from_iterable(lists), np.int32, count=offsets[-1]))
    return pa.ListArray.from_arrays(offsets, values)


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
