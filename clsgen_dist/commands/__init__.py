"""One thin module for each command: its arguments, a call of the library, what it prints.

In: a command line, already parsed. Out: text, files, an exit status. Nothing here is needed to use the library.
"""
