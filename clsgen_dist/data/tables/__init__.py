"""Rows on disk, in tokens: ``build`` makes a ``table``, ``dataset`` sees it through a prompt, ``shards`` streams many.

In: checked examples and a tokenizer. Out: samples by row number, lengths before anything is read. A build reads the
source twice and writes about its size twice over; an open table costs 20 bytes a row, mapped.
"""
