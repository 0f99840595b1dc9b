#!/usr/bin/env bash
# One job per curriculum stage, each on as many nodes as it needs; a stage begins when the one before has ended well.
#
#   slurm/chain.sh slurm/train_70b.sh easy=2 hard=8 -- --data.train rows.jsonl
#
# The next stage resumes the last checkpoint of the one before, on other ranks too. A job that is requeued keeps its
# place in the chain. SBATCH_FLAGS has flags for each sbatch, like "--partition=gpu --account=lab". DRY_RUN=1 shows the
# submissions.
set -euo pipefail

(($# >= 2)) || {
    echo "usage: slurm/chain.sh JOB_SCRIPT STAGE=NODES... [-- ARGUMENTS FOR train.py]" >&2
    exit 2
}
script=$1
shift
stages=()
while (($#)) && [[ $1 != -- ]]; do
    [[ $1 =~ ^[^=]+=[1-9][0-9]*$ ]] || {
        echo "error: '$1' is no STAGE=NODES, like easy=2" >&2
        exit 2
    }
    stages+=("$1")
    shift
done
(($#)) && shift

read -ra flags <<<"${SBATCH_FLAGS:-}"
before=
for stage in "${stages[@]}"; do
    submit=(sbatch --parsable ${flags[@]+"${flags[@]}"} --nodes="${stage#*=}" ${before:+"--dependency=afterok:$before"})
    submit+=("$script" --train.stop_at_stage "${stage%%=*}" "$@")
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        printf '%q ' "${submit[@]}"
        echo
        before="<job of ${stage%%=*}>"
    else
        before=$("${submit[@]}")
        echo "stage ${stage%%=*}: job $before on ${stage#*=} nodes"
    fi
done
