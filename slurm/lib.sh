#!/usr/bin/env bash
# What every job does. Sourced by train_*.sh, which hold directives and settings only.
#
#   RECIPE   YAML recipe                       OUTPUT   the run's folder, seen by all nodes
#
# The tasks run train.py, one per GPU. How a task ends decides what becomes of the job (clsgen_dist/errors.py):
#   0 done · 2 a person must mend it: no requeue · 75 asked to stop, checkpoint written: requeue · else crash: requeue
#   while Slurm's restart count is below MAX_RESTARTS. train.py itself refuses (2) when restarts make no progress.
set -euo pipefail

say() { printf '== %s %s\n' "$(date '+%F %T')" "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# need NAME FIX: NAME must be set.
need() { [[ -n ${!1:-} ]] || die "$1 is not set; $2"; }

# With DRY_RUN=1 a command is shown, in a form that a shell reads back, and not run.
run() {
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

# Site settings: slurm/cluster.env, or the file that CLSGEN_CLUSTER_ENV names.
load_site() {
    local file=${CLSGEN_CLUSTER_ENV:-$ROOT/slurm/cluster.env}
    if [[ -f $file ]]; then
        # shellcheck source=/dev/null
        source "$file"
    elif [[ -n ${CLSGEN_CLUSTER_ENV:-} ]]; then
        die "CLSGEN_CLUSTER_ENV names $file, which is not there"
    fi
}

# Where rank 0 listens: the job's first node, on a port that other jobs of this node are unlikely to have.
rendezvous() {
    local hosts
    hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    export MASTER_ADDR=${CLSGEN_MASTER_ADDR:-${hosts%%$'\n'*}}
    export MASTER_PORT=${CLSGEN_MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
}

# What ran, on what: appended for each start.
record() {
    {
        echo "--- $(date '+%F %T') job $SLURM_JOB_ID restart ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST"
        git -C "$ROOT" describe --always --dirty 2>/dev/null || echo "no git here"
        nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "no nvidia-smi here"
        "$PYTHON" -m pip freeze 2>/dev/null | grep -iE '^(torch|deepspeed|transformers|triton|flash|bitsandbytes|peft)' || true
    } >>"$OUTPUT/environment.txt"
}

# The words before the command that put it into a container; none without.
container() {
    case ${CONTAINER:-none} in
        none | pyxis) ;;
        apptainer) printf '%s\n' apptainer exec --nv --bind "${CONTAINER_MOUNTS:-$ROOT}" "$CONTAINER_IMAGE" ;;
        enroot) printf '%s\n' enroot start --mount "${CONTAINER_MOUNTS:-$ROOT}" "$CONTAINER_IMAGE" ;;
        *) die "CONTAINER is '$CONTAINER', expected none, pyxis, enroot or apptainer" ;;
    esac
}

# What each task runs. Bash stays in between, for two things: a log per rank (rank 0's is the job's main log too), and a
# list of who ended badly and how, the first one first: srun kills the others then and reports the highest status, which
# is often theirs. 75 ends as 0, or srun would kill the other ranks on their way out.
# Signals are the trainer's business: bash and tee outlive them, the trainer has handlers of its own.
task() {
    # shellcheck disable=SC2016  # expands in the task
    printf '%s' '
        trap : USR2 TERM
        log=$CLSGEN_LOGS/rank-$SLURM_PROCID.log
        if [ "$SLURM_PROCID" = 0 ]; then "$@" 2>&1 | (trap "" USR2 TERM; exec tee -a "$log"); status=${PIPESTATUS[0]}
        else "$@" >>"$log" 2>&1; status=$?; fi
        [ "$status" = 0 ] || echo "$status rank $SLURM_PROCID on ${SLURMD_NODENAME:-?}" >>"$CLSGEN_LOGS/failed"
        [ "$status" = 75 ] && exit 0
        exit "$status"'
}

# Run srun and wait for its end, also when a signal interrupts the wait; its status is ours.
start_tasks() {
    local status
    local -a flags=(--kill-on-bad-exit=1 --wait=60 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}")
    [[ ${CONTAINER:-none} == pyxis ]] && flags+=(--container-image="$CONTAINER_IMAGE" --container-mounts="${CONTAINER_MOUNTS:-$ROOT}")
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        run srun "${flags[@]}" bash -c "$(task)" task "$@"
        return
    fi
    srun "${flags[@]}" bash -c "$(task)" task "$@" &
    local tasks=$!
    trap 'say "TERM: the tasks have it too, waiting for them"' TERM
    while :; do
        status=0
        wait "$tasks" || status=$?
        kill -0 "$tasks" 2>/dev/null || break
    done
    return "$status"
}

# requeue WHY: the same job once more, from its last checkpoint.
requeue() {
    say "$1: requeued (restart $((${SLURM_RESTART_COUNT:-0} + 1)))"
    run scontrol requeue "$SLURM_JOB_ID"
}

# train ARGUMENTS...: the whole job. ARGUMENTS go to train.py.
train() {
    ROOT=${CLSGEN_ROOT:-${SLURM_SUBMIT_DIR:-$PWD}}
    load_site
    need RECIPE "set it in the job script, like RECIPE=configs/70b_zero3.yaml"
    need OUTPUT "set it in the job script, to a folder that all nodes see"
    need SLURM_JOB_ID "this runs under Slurm: sbatch slurm/train_70b.sh (DRY_RUN=1 SLURM_JOB_ID=1 SLURM_JOB_NODELIST=n1 shows the commands)"
    PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
    local -a words command=("${PYTHON}" "$ROOT/train.py" --config "$RECIPE" --output_dir "$OUTPUT" --resume auto "$@")
    [[ -n ${CLSGEN_COMMAND:-} ]] && command=(bash -c "$CLSGEN_COMMAND")
    mapfile -t words < <(container)
    export CLSGEN_LOGS=$OUTPUT/logs/$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
    export PYTHONPATH=$ROOT:$ROOT/kernels${PYTHONPATH:+:$PYTHONPATH}
    cd "$ROOT"
    run mkdir -p "$CLSGEN_LOGS"
    rendezvous
    [[ ${DRY_RUN:-0} == 1 ]] || record
    local status=0
    start_tasks "${words[@]}" "${command[@]}" || status=$?
    [[ ${DRY_RUN:-0} == 1 ]] && return
    local first=$status
    [[ -s $CLSGEN_LOGS/failed ]] && first=$(head -n 1 "$CLSGEN_LOGS/failed")
    status=${first%% *}
    if ((status == 75)); then
        requeue "asked to stop, checkpoint written"
    elif ((status == 0)); then
        say "done"
    elif ((status == 2)); then
        say "status $first: see $CLSGEN_LOGS; mend it, then sbatch again"
        exit 2
    elif ((${SLURM_RESTART_COUNT:-0} < ${MAX_RESTARTS:-20})); then
        requeue "status $first"
    else
        say "status $first after $SLURM_RESTART_COUNT restarts (MAX_RESTARTS is ${MAX_RESTARTS:-20}): giving up; see $CLSGEN_LOGS"
        exit "$status"
    fi
}
