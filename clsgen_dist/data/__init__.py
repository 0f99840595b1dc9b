"""From rows to packed batches: ``reading`` → ``tables`` → ``curriculum`` → ``encode`` and ``pack`` → ``loader``.

In: files or hub sets of texts, labels and explanations. Out: batches of tokens for one rank, in an order that depends
on (seed, stage, position) alone. Rows are read and tokenised once, into memory-mapped tables beside the data; a step
then costs milliseconds, ahead of the step that needs it. ``checks`` looks for what is wrong with rows.
"""
