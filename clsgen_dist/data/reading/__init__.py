"""From files and hub sets to examples: ``sniff`` → ``records`` → ``cells`` → ``ingest``; bad rows → ``rejection``.

In: JSONL, CSV, Parquet, saved folders, hub ids. Out: :class:`~clsgen_dist.data.example.Example`, or a rejected row with
file, line, code and reason. One pass, about 50,000 short rows a second and core.
"""
