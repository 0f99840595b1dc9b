"""From rows in files to batches of tokens."""
