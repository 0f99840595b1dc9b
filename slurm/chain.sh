#!/usr/bin/env bash
# Submit one job per curriculum stage, each on its own number of nodes. A stage starts when the one before it has succeeded.
#
#   slurm/chain.sh slurm/train_70b.sh easy=2 hard=8 -- --data.train rows.jsonl
#
# Each stage resumes from the last checkpoint of the one before, on any number of ranks. A job that is requeued keeps its place in
# the chain; if a stage fails, Slurm removes the ones after it. SBATCH_FLAGS is passed to each sbatch, for example
# "--partition=gpu --account=lab", or "--array=1-9%1" where jobs may not requeue themselves. Nodes in OUTPUT/bad_nodes are
# excluded. If Slurm cannot start a stage with the nodes as they are, nothing is submitted (CHECK_STAGES=0 skips this check).
# DRY_RUN=1 prints the commands instead of submitting.
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
# The job script sets OUTPUT (OUTPUT=${OUTPUT:-...}): evaluate its assignments.
OUTPUT=$(
    set +u
    eval "$(grep -E '^(export )?[A-Za-z_]+=' "$script")" >/dev/null
    printf %s "${OUTPUT:-}"
)
bad=$(cut -d ' ' -f 1 "${OUTPUT:-}/bad_nodes" 2>/dev/null | sort -u | paste -sd ,) || true
# Slurm does not check a job that depends on another until its dependency is met: a stage that no nodes can run would fail late.
for stage in "${stages[@]}"; do
    [[ ${DRY_RUN:-0} != 1 && ${CHECK_STAGES:-1} == 1 ]] || break
    reason=$(sbatch --test-only ${bad:+"--exclude=$bad"} ${flags[@]+"${flags[@]}"} --nodes="${stage#*=}" "$script" 2>&1) ||
        die "stage $stage cannot start on the cluster as it is: ${reason//$'\n'/; }. Nothing was submitted. If nodes are only down for now: CHECK_STAGES=0"
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
        before=${before%%;*} # a federation prints job;cluster
        echo "stage ${stage%%=*}: job $before on ${stage#*=} nodes"
    fi
done
