"""``python -m clsgen_dist VERB …``: the command ``clsgen``, where only the interpreter is known."""

from clsgen_dist.cli import main

if __name__ == "__main__":
    main()
