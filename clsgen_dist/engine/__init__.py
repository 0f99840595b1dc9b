"""DeepSpeed, and nothing else: processes, its configuration, compiled operators, optimizer, the ZeRO-3 engine.

In: settings and a model. Out: a ``World`` of ranks and an engine that trains. Costs what DeepSpeed costs: seconds to
start, two minutes for an operator in C++ at its first use.
"""
