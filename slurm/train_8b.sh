#!/usr/bin/env bash
# Llama-3 8B on 1 node of 8 GPUs:   sbatch slurm/train_8b.sh --data.train rows.jsonl --data.dev dev.jsonl
# Arguments after the script's name go to train.py; Slurm flags go before it, and override those below.
#SBATCH --job-name=clsgen-8b
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=12
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=12:00:00
#SBATCH --signal=USR2@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -euo pipefail
RECIPE=${RECIPE:-configs/8b_lora.yaml}
OUTPUT=${OUTPUT:-runs/8b}
lib=${CLSGEN_ROOT:-${SLURM_SUBMIT_DIR:-.}}/slurm/lib.sh
[[ -r $lib ]] || { echo "error: $lib does not exist: submit from the checkout, or set CLSGEN_ROOT to it" >&2; exit 2; }
# shellcheck source=slurm/lib.sh
source "$lib"
train "$@"
