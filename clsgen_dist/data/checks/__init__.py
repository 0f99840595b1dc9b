"""The checks of `clsgen data check`: ``measure`` reads the rows, ``report`` writes what the others find."""
