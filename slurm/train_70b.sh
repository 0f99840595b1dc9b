#!/usr/bin/env bash
# Llama-3 70B on 8 nodes of 8 GPUs:   sbatch slurm/train_70b.sh --data.train rows.jsonl --data.dev dev.jsonl
# Arguments after the script's name go to train.py; Slurm flags go before it, and override those below.
#SBATCH --job-name=clsgen-70b
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=12
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=USR2@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -euo pipefail
RECIPE=${RECIPE:-configs/70b_zero3.yaml}
OUTPUT=${OUTPUT:-runs/70b}
lib=${CLSGEN_ROOT:-${SLURM_SUBMIT_DIR:-.}}/slurm/lib.sh
[[ -r $lib ]] || { echo "error: $lib does not exist: submit from the checkout, or set CLSGEN_ROOT to it" >&2; exit 2; }
# shellcheck source=slurm/lib.sh
source "$lib"
train "$@"
