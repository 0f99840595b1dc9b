"""Train a dual-head model: ``deepspeed --num_gpus 8 train.py --config configs/demo.yaml``; ``--help`` for settings."""

from clsgen_dist.cli import train_main

if __name__ == "__main__":
    train_main()
