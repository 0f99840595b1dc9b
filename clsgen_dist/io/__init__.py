"""Files, pictures and output, whatever package they are for.

In: texts, tables, figures. Out: files written atomically, lines on a terminal, cached folders.
Costs nothing to import. Imports nothing of ours but :mod:`clsgen_dist.errors`.
"""
