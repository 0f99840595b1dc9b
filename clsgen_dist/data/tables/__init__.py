"""Rows on disk, in tokens: ``spec`` → ``build`` (by ``part``) → ``table`` → ``dataset`` (through a prompt).

``shards`` does the same for datasets larger than the disk. In: checked examples and a tokenizer. Out: samples by row
number, and their lengths without reading the rows. A build reads the source twice and writes about twice its size; an
open table costs 20 bytes per row, mapped.
"""
