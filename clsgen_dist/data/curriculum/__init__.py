"""Which row is visited when: ``difficulty`` of each row → ``stages`` with their pools → ``order`` of positions.

In: rows in a table, the stages of a recipe. Out: the row at each position, a function of (seed, stage, position), so
that a resumed run needs no state. Cost: one sort of the rows per stage.
"""
