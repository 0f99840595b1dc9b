"""``clsgen train`` under the name that launchers expect: ``deepspeed --num_gpus 8 train.py --config recipe.yaml``."""

import sys

from clsgen_dist.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
