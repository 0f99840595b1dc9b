"""From rows to packed batches: ``reading`` → ``tables`` → ``curriculum`` → ``encode`` and ``pack`` → ``loader``.

In: files or hub datasets of texts, labels and explanations. Out: batches of tokens for one rank, in an order that
depends on (seed, stage, position) alone. Rows are read and tokenised once, into memory-mapped tables next to the data;
a step then costs milliseconds, and is prefetched. ``checks`` looks for what is wrong with rows.
"""
