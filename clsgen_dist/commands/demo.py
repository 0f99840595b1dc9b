"""``clsgen demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clsgen_dist.io.value_ranges import NonNegativeInt, PositiveInt


def run(
    output: str = "runs/demo",
    ranks: PositiveInt = 1,
    seed: NonNegativeInt = 0,
    predictions: NonNegativeInt = 3,
) -> None:
    """Train, export, calibrate and evaluate the embedded demo, and print a report.

    Args:
        output: Folder for checkpoints, TensorBoard log, model and report; an earlier demo's there is replaced.
        ranks: Processes to shard over; one per core or GPU at most.
        seed: Seed of the split, the new weights, and the order of rows.
        predictions: Held-out rows to show with probability and explanation.
    """
    from clsgen_dist.inference.demo import run_demo

    folder = Path(output)
    demo = run_demo(folder, ranks=ranks, seed=seed)
    found = demo.evaluation
    print(f"\n{found.text()}\n")
    for example, prediction in list(zip(found.examples, found.predictions, strict=True))[:predictions]:
        print(f"{example.id} ({example.label})  {example.text}")
        print(f"    {prediction.probabilities['malignant']:.1%} malignant: {prediction.explanation}\n")
    print(
        "Decision support, not a decision. Logistic regression on clean numbers wins here, as it should: the demo "
        "shows the machinery; text is what it is for."
    )
    print(f"both loss curves  tensorboard --logdir {folder / 'tensorboard'}")
    print(f"the model         {folder / 'model'}   (clsgen predict --model {folder / 'model'} --text '...')")
    print(f"took {demo.training_seconds:.0f} s to train, {demo.other_seconds:.0f} s for everything after")
    print(f"the report        {demo.page}   (open it in a browser)")
