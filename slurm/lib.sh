#!/usr/bin/env bash
# What every job does. Sourced by train_*.sh, which hold directives and settings only.
#
#   RECIPE   YAML recipe                       OUTPUT   the run's folder, seen by all nodes
#
# The tasks run train.py, one per GPU. How a task ends decides what becomes of the job (clsgen_dist/errors.py):
#   0 done · 2 a person must mend it: no requeue · 75 asked to stop, checkpoint written: requeue · else crash: requeue
#   until this job has crashed MAX_RESTARTS times. train.py itself refuses (2) when restarts make no progress.
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
    export CLSGEN_NODES=$hosts
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

# The array's other tasks have nothing left to do.
end_array() { [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || run scancel --state=PENDING "$SLURM_ARRAY_JOB_ID"; }

# Look at the nodes before each start: chips, disks, speed, links. The job is requeued without those that are bad.
preflight() {
    [[ ${PREFLIGHT:-1} == 1 ]] || return 0
    local status=0 known log=$CLSGEN_LOGS/preflight.log
    known=$(bad_nodes | wc -l)
    local -a command=("$PYTHON" -m clsgen_dist preflight --output_dir "$OUTPUT")
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        run srun --wait=0 --time=15 "${task_flags[@]}" "$@" "${command[@]}"
        return
    fi
    srun --wait=0 --time=15 "${task_flags[@]}" "$@" "${command[@]}" >"$log" 2>&1 || status=$?
    ((status == 0)) && { say "$(tail -n 1 "$log")"; return; }
    tail -n 20 "$log"
    case $status in 2 | 126 | 127)
        say "the preflight cannot run (status $status): see $log; mend it, or set PREFLIGHT=0"
        exit 2
        ;;
    esac
    # No verdict: rank 0, which judges, is gone.
    (($(bad_nodes | wc -l) > known)) || echo "${CLSGEN_NODES%%$'\n'*} $(date '+%FT%T') no verdict came from it" >>"$OUTPUT/bad_nodes"
    leave_out
}

bad_nodes() { [[ ! -f $OUTPUT/bad_nodes ]] || cut -d ' ' -f 1 "$OUTPUT/bad_nodes"; }

# Requeue the job on other nodes than the bad ones, as long as there are enough, and not too many were found bad.
leave_out() {
    local bad left
    bad=$(bad_nodes | sort -u)
    if (($(wc -l <<<"$bad") > ${MAX_BAD_NODES:-8})); then
        say "more than MAX_BAD_NODES (${MAX_BAD_NODES:-8}) bad nodes: something else is wrong; see $OUTPUT/bad_nodes, mend it, delete the file"
        exit 2
    fi
    left=$(sinfo -h -N -p "$SLURM_JOB_PARTITION" -o %N | sort -u | grep -cvxF "$bad" || true)
    if ((left < SLURM_JOB_NUM_NODES)); then
        say "$left nodes are left besides the bad ones, $SLURM_JOB_NUM_NODES are needed: see $OUTPUT/bad_nodes, mend them, delete their lines"
        exit 2
    fi
    trap '' TERM # requeueing ends this script too, and what comes after it must still be said
    bad=${bad//$'\n'/,}
    if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then
        scontrol update JobId="$SLURM_ARRAY_JOB_ID" ExcNodeList="$bad" || say "no task of the array is left"
        requeue "bad nodes left out: $bad"
    fi
    requeue "bad nodes left out: $bad"
    scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$bad"
    exit 0
}

# How often this job has crashed; stops that were asked for, bad nodes and lost nodes do not count.
crashes() { find "$OUTPUT/logs" -path "*/$SLURM_JOB_ID.*/failed" -exec head -qn 1 {} + | grep -cv '^75 ' || true; }

# TERM comes to this script when someone cancels the job, who does not want it back, and at the time limit.
cancelled=0
terminated() {
    (($(date +%s) + 60 >= ${SLURM_JOB_END_TIME:-9999999999})) || cancelled=1
    say "TERM: waiting for the tasks"
}

# Run srun and wait for its end, also when a signal interrupts the wait; its status is ours.
start_tasks() {
    local status
    local -a flags=(--kill-on-bad-exit=1 --wait=60 "${task_flags[@]}")
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        run srun "${flags[@]}" bash -c "$(task)" task "$@"
        return
    fi
    srun "${flags[@]}" bash -c "$(task)" task "$@" &
    local tasks=$!
    trap terminated TERM
    while :; do
        status=0
        wait "$tasks" || status=$?
        kill -0 "$tasks" 2>/dev/null || break
    done
    return "$status"
}

# requeue WHY [STATUS]: the same job once more, from its last checkpoint; of an array (sbatch --array=1-9%1) the next task,
# for sites whose jobs may not requeue themselves.
requeue() {
    if ((cancelled)); then
        say "$1: cancelled, so not started again"
        exit 143
    fi
    if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then
        say "$1: the next task of the array goes on"
        exit "${2:-0}"
    fi
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
    local prefix
    local -a words=() task_flags=(--cpus-per-task="${SLURM_CPUS_PER_TASK:-1}")
    [[ ${CONTAINER:-none} == pyxis ]] && task_flags+=(--container-image="$CONTAINER_IMAGE" --container-mounts="${CONTAINER_MOUNTS:-$ROOT}")
    local -a command=("${PYTHON}" "$ROOT/train.py" --config "$RECIPE" --output_dir "$OUTPUT" --resume auto "$@")
    [[ -n ${CLSGEN_COMMAND:-} ]] && command=(bash -c "$CLSGEN_COMMAND")
    [[ ${CONTAINER:-none} == none ]] || need CONTAINER_IMAGE "name the image in slurm/cluster.env"
    prefix=$(container) || exit 2
    [[ -z $prefix ]] || mapfile -t words <<<"$prefix"
    export CLSGEN_LOGS=$OUTPUT/logs/$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
    export PYTHONPATH=$ROOT:$ROOT/kernels${PYTHONPATH:+:$PYTHONPATH}
    cd "$ROOT"
    run mkdir -p "$CLSGEN_LOGS"
    rendezvous
    [[ ${DRY_RUN:-0} == 1 ]] || record
    preflight "${words[@]}"
    local status=0
    start_tasks "${words[@]}" "${command[@]}" || status=$?
    [[ ${DRY_RUN:-0} == 1 ]] && return
    ((status == 0)) || [[ -s $CLSGEN_LOGS/failed ]] || echo "$status srun" >"$CLSGEN_LOGS/failed"
    local first=$status
    [[ -s $CLSGEN_LOGS/failed ]] && first=$(head -n 1 "$CLSGEN_LOGS/failed")
    status=${first%% *}
    if ((status == 75)); then
        requeue "asked to stop, checkpoint written"
    elif ((status == 0)); then
        end_array
        say "done"
    elif ((status == 2)); then
        end_array
        say "status $first: see $CLSGEN_LOGS; mend it, then sbatch again"
        exit 2
    elif (($(crashes) <= ${MAX_RESTARTS:-20})); then
        requeue "status $first" "$status"
    else
        say "status $first, crash number $(crashes) of this job (MAX_RESTARTS is ${MAX_RESTARTS:-20}): giving up; see $CLSGEN_LOGS"
        exit "$status"
    fi
}
