"""``clsgen data review``: people decide on doubtful rows, in a browser, over one SQLite file.

    rows ─import_rows─▶ store (queue, leases, decisions, notes) ─app─▶ page ─▶ decision ─▶ store ─export─▶ rows

In: rows of any source that training reads, or annotations of Label Studio or Argilla. Out: the same rows with what
people decided, in the columns that the trainer reads. Every decision is on disk before the page says so.
"""
