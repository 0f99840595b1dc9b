#!/usr/bin/env bash
# One job per curriculum stage, each on as many nodes as it needs; a stage begins when the one before has ended well.
#
#   slurm/chain.sh slurm/train_70b.sh easy=2 hard=8 -- --data.train rows.jsonl
#
# The next stage resumes the last checkpoint of the one before, on other ranks too. A job that is requeued keeps its
# place in the chain; once a stage has failed, Slurm ends those after it. SBATCH_FLAGS has flags for each sbatch, like
# "--partition=gpu --account=lab", or "--array=1-9%1" where jobs may not requeue themselves. Nodes that OUTPUT/bad_nodes
# lists are left out. A stage that Slurm could not start as the nodes are now is refused before any is submitted
# (CHECK_STAGES=0 leaves that out). DRY_RUN=1 shows the submissions.
set -euo pipefail

die() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

(($# >= 1)) || die "usage: slurm/chain.sh JOB_SCRIPT STAGE=NODES... [-- ARGUMENTS FOR train.py]"
script=$1
shift
[[ -r $script ]] || die "'$script' is not a readable job script, expected one like slurm/train_70b.sh"
stages=()
while (($#)) && [[ $1 != -- ]]; do
    [[ $1 =~ ^[^=]+=[1-9][0-9]*$ ]] || die "'$1' is not STAGE=NODES, like easy=2"
    stages+=("$1")
    shift
done
(($#)) && shift
((${#stages[@]})) || die "no stages: name at least one STAGE=NODES, like easy=2, before --"

xargs -n 1 <<<"${SBATCH_FLAGS:-}" >/dev/null 2>&1 || die "SBATCH_FLAGS is '$SBATCH_FLAGS', with an unclosed quote"
mapfile -t flags < <(xargs -rn 1 printf '%s\n' <<<"${SBATCH_FLAGS:-}")
# The script itself says where its runs go: OUTPUT=${OUTPUT:-...}
OUTPUT=$(
    set +u
    eval "$(grep -E '^(export )?[A-Za-z_]+=' "$script")" >/dev/null
    printf %s "${OUTPUT:-}"
)
bad=$(cut -d ' ' -f 1 "${OUTPUT:-}/bad_nodes" 2>/dev/null | sort -u | paste -sd ,) || true
# Slurm takes a stage that waits for another on trust: one that no nodes can ever run would be found out when its turn has come.
for stage in "${stages[@]}"; do
    [[ ${DRY_RUN:-0} != 1 && ${CHECK_STAGES:-1} == 1 ]] || break
    told=$(sbatch --test-only ${bad:+"--exclude=$bad"} ${flags[@]+"${flags[@]}"} --nodes="${stage#*=}" "$script" 2>&1) ||
        die "stage $stage cannot start on the cluster as it is: ${told//$'\n'/; }. Nothing was submitted. If nodes are only down for now: CHECK_STAGES=0"
done
before=
for stage in "${stages[@]}"; do
    submit=(sbatch --parsable ${bad:+"--exclude=$bad"} ${flags[@]+"${flags[@]}"} --nodes="${stage#*=}")
    submit+=(${before:+"--dependency=afterok:$before" --kill-on-invalid-dep=yes})
    submit+=("$script" --train.stop_at_stage "${stage%%=*}" "$@")
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        printf '%q ' "${submit[@]}"
        echo
        before="<job of ${stage%%=*}>"
    else
        before=$("${submit[@]}")
        before=${before%%;*} # of a federation: job;cluster
        echo "stage ${stage%%=*}: job $before on ${stage#*=} nodes"
    fi
done
