"""From files and hub datasets to examples: ``sniff`` → ``records`` → ``cells`` → ``ingest``; bad rows → ``rejection``.

In: JSONL, CSV, Parquet, saved folders, hub ids, embedded datasets. Out:
:class:`~clsgen_dist.data.example.Example`, or a rejected row with file, line, code and reason. One pass, about 50,000
short rows per second and core.
"""
