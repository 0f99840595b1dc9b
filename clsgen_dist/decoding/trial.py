"""What a stranger's schema, expression or grammar costs, tried in a process that may die of it.

llguidance bounds most of its work, not all: the intersection of 20 short expressions (200 characters of Lark) compiles
for over 20 s, and a chain of 5,000 rules overflows the stack, which ends the process. So a form that a client sends is
compiled in a process of its own first, under the operating system's limits on time, memory and stack.

Cost: 0.2 s of a core for each new form; its verdict is kept.
"""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache

MOST_SECONDS = 2
"""Of a core, 0.1 of them for the start."""
_MOST_BYTES = 2 * 2**30
_STACK_BYTES = 4 * 2**20
"""Half of what a thread of the server has."""
_KEPT = 256
_PROGRAM = f"""
import resource, sys, threading
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_CPU, ({MOST_SECONDS}, {MOST_SECONDS}))
resource.setrlimit(resource.RLIMIT_AS, ({_MOST_BYTES}, {_MOST_BYTES}))
from llguidance import LLMatcher, LLTokenizer
grammar, done = sys.stdin.buffer.read().decode(), []
threading.stack_size({_STACK_BYTES})
thread = threading.Thread(target=lambda: done.append(LLMatcher(LLTokenizer("byte"), grammar, log_level=0)))
thread.start()
thread.join()
sys.exit(not done)
"""


@lru_cache(maxsize=_KEPT)
def is_bounded(grammar: str) -> bool:
    """Whether a grammar compiles within the limits, to a matcher or to an error.

    Args:
        grammar: from :func:`clsgen_dist.decoding.constraint.grammar`.
    """
    command = [sys.executable, "-P", "-c", _PROGRAM]
    return subprocess.run(command, input=grammar.encode(), capture_output=True, check=False).returncode == 0
