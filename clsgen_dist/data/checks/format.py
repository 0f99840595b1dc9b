"""Findings on files, explanations and lengths: unusable rows, missing explanations, texts that are too long."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from clsgen_dist.data.checks.finding import Finding, Limits, RowRef, row_ref
from clsgen_dist.data.checks.row_statistics import Split
from clsgen_dist.data.reading.rejection import Rejection, counted
from clsgen_dist.io.text import row_count_phrase


def unreadable(split: Split, limits: Limits) -> Iterator[Finding]:
    """Files that cannot be read, rows that are rejected, wrongly decoded characters."""
    name = (split.source.name,)
    path = split.source.path
    if split.fault:
        yield Finding(split.fault.kind, "error", name, f"{path} {split.fault.what}", split.fault.remedy)
        return
    if not split.total:
        yield Finding("empty", "error", name, f"{path} has no rows", "check what wrote the file, or leave it out")
        return
    if split.has_byte_order_mark:
        yield Finding("byte-order-mark", "info", name, f"{path} begins with UTF-8's byte order mark; it is skipped")
    if split.rejected:
        codes = Counter(row.code for row in split.rejected)
        share = len(split.rejected) / split.total
        too_many = share > limits.max_bad_fraction or not len(split)
        yield Finding(
            "unusable-rows",
            "error" if too_many else "warning",
            name,
            f"{len(split.rejected)} of {split.total} rows cannot be used ({share:.1%}; data.max_bad_fraction allows "
            f"{limits.max_bad_fraction:.1%}): {counted(codes)}",
            _remedy(split),
            len(split.rejected),
            split.total,
            [RowRef(name[0], row.line, detail=row.reason, excerpt=row.raw) for row in split.rejected],
        )
    if split.mojibake:
        yield Finding(
            "mojibake",
            "warning",
            name,
            row_count_phrase(len(split.mojibake), "holds", "hold")
            + " wrongly decoded characters (like 'Ã©' for 'é', or '\ufffd')",
            "write the file again from its source, decoded with the right encoding; the ftfy package repairs most",
            len(split.mojibake),
            len(split),
            [row_ref(split, row) for row in split.mojibake],
        )


def _remedy(split: Split) -> str:
    """The remedy for the most frequent kind of unusable row."""
    code = Rejection(Counter(row.code for row in split.rejected).most_common(1)[0][0])
    if code is Rejection.NOT_UTF8:
        return f"if the file is Latin-1 (Windows): iconv -f WINDOWS-1252 -t UTF-8 {split.source.path} > NEW"
    if code in (Rejection.NO_TARGET, Rejection.MISSING_TEXT):
        row = next(row for row in split.rejected if row.code == code)
        try:
            row_columns = ", ".join(json.loads(row.raw))
        except (json.JSONDecodeError, TypeError):
            row_columns = ""
        return "name your columns with --columns.text, --columns.label and --columns.explanation" + (
            f"; line {row.line} has {row_columns}" if row_columns else ""
        )
    if code is Rejection.DUPLICATE_ID:
        return "delete the copies, or give each row a unique id"
    return "fix or delete these rows"


def explanations(split: Split, names: Sequence[str], limits: Limits) -> Iterator[Finding]:
    """Splits without explanations, in part or in full; explanations that are too long."""
    name = (split.source.name,)
    explained = sum(count > 0 for count in split.explanations)
    if not explained:
        yield Finding(
            "none-explained",
            "warning",
            name,
            f"none of {len(split)} rows has an explanation: the model would be trained to classify, but not to explain",
            "check --columns.explanation, or write explanations for a few hundred rows",
            len(split),
            len(split),
        )
    elif explained < len(split):
        yield Finding(
            "partly-explained",
            "info",
            name,
            f"{explained} of {len(split)} rows are explained ({explained / len(split):.1%})",
            count=len(split) - explained,
            of=len(split),
            rows=[row_ref(split, row, names) for row, count in enumerate(split.explanations) if not count],
        )
    limit = limits.max_explanation_length
    long = [row for row, tokens in enumerate(split.explanation_tokens) if tokens > limit]
    if long:
        bad = (len(long) + len(split.rejected)) / split.total
        yield Finding(
            "long-explanations",
            "error" if bad > limits.max_bad_fraction else "warning",
            name,
            f"{row_count_phrase(len(long), 'would', 'would')} be rejected: an explanation is longer than "
            f"data.max_explanation_length {limit} tokens (the longest has {max(split.explanation_tokens)})",
            f"shorten them, or raise data.max_explanation_length to {max(split.explanation_tokens)}",
            len(long),
            len(split),
            [row_ref(split, row, names, f"{split.explanation_tokens[row]} tokens") for row in long],
        )


def lengths(split: Split, names: Sequence[str], limits: Limits) -> Iterator[Finding]:
    """Prompts that would be truncated."""
    limit = limits.max_prompt_length
    cut = [row for row, tokens in enumerate(split.prompt_tokens) if tokens > limit]
    if cut:
        longest = max(split.prompt_tokens)
        covers = int(np.percentile(split.prompt_tokens, 99))
        advice = f"raise data.max_prompt_length to {longest}"
        if covers <= limit or len(cut) == 1:
            advice = "shorten these texts, so that what matters is not in the middle"
        elif covers < longest / 2:
            advice = f"raise data.max_prompt_length to {covers} (fits 99 % of the rows)"
        yield Finding(
            "truncation",
            "warning",
            (split.source.name,),
            f"{row_count_phrase(len(cut), 'would', 'would')} lose the middle of the text: the prompt is longer than "
            f"data.max_prompt_length {limit} tokens (the longest has {longest})",
            advice,
            len(cut),
            len(split),
            [row_ref(split, row, names, f"{split.prompt_tokens[row]} tokens") for row in cut],
        )
