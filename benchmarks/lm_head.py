"""An LM head that is gathered beside one that stays sharded, under ZeRO-3 on real ranks: memory, traffic, time.

    OMP_NUM_THREADS=1 python benchmarks/lm_head.py                    # 2 and 4 ranks, a few minutes
    OMP_NUM_THREADS=1 python benchmarks/lm_head.py --ranks 2

A random Llama of 3 layers, 576 wide, with SmolLM2's 49,152 tokens, so that the head is most of it. Each rank has two
micro-batches of 512 tokens, 128 of them supervised. Printed for a step: the peak of allocated memory, and what the
planner expects; bytes of the complete tensors that are gathered, reduced, exchanged; the median step time, on cores
that the ranks share.
"""

from __future__ import annotations

import argparse
import itertools
import json
import socket
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests/plan"), str(ROOT), str(ROOT / "kernels")]

OPERATIONS = ("_allgather_base_", "_reduce_scatter_base_", "alltoall_base_")


def main() -> None:
    """Measure and plan every case, and print a row for each."""
    import plan_cases

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    wanted = parser.parse_args().ranks
    shape = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 3}
    shape |= {"num_attention_heads": 9, "num_key_value_heads": 3}
    cases = []
    for tied, finetune, lm_head in itertools.product((False, True), ("full", "lora"), ("gathered", "sharded")):
        name = f"{'tied' if tied else 'untied'}, {'all weights' if finetune == 'full' else 'LoRA'}: {lm_head}"
        shape_name = "head, tied" if tied else "head, untied"
        plan_cases.SHAPES[shape_name] = ("Llama", {**shape, "tie_word_embeddings": tied})
        settings = {"model__finetune": finetune, "objectives__lm_head": lm_head}
        cases.append(plan_cases.Case(name, shape_name, plan_cases.LETS_GO, settings, timed_steps=5))
    print("| ranks | LM head | peak MB | planned | gathered MB | reduced MB | exchanged MB | s a step |")
    print("|--:|---|--:|--:|--:|--:|--:|--:|")
    for ranks in wanted:
        with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            probe.close()
            path = plan_cases.prepare(Path(folder), cases)
            reports = plan_cases.measure(path, ranks, str(port), timeout=1800)
            for written in json.loads(path.read_text())[1:]:
                report, planned = reports[written["name"]], plan_cases.predict(written, ranks)
                moved = [report["traffic"].get(op, 0) for op in OPERATIONS]
                megabytes = " | ".join(f"{value / 1e6:.1f}" for value in (report["peak"], planned.total, *moved))
                print(f"| {ranks} | {written['name']} | {megabytes} | {report['seconds']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
