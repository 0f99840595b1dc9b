"""A report that opens anywhere: sections of text, tables, figures and examples, as one HTML page and as Markdown.

In: a :class:`~clsgen_dist.report.document.Document`. Out: ``index.html``, which loads nothing from elsewhere, and
``report.md``. What the figures mean is decided by the caller; here they are laid out. Cost: the figures, 0.1 s each.
"""
