#!/usr/bin/env bash
# What every job does. Sourced by train_*.sh, which hold directives and settings only.
#
#   RECIPE   YAML recipe                       OUTPUT   the run's folder, seen by all nodes
#
# A job has two steps, each with one task per GPU: a look at the nodes, then clsgen train. How a task ends decides what becomes
# of the job (clsgen_dist/errors.py), in finish():
#   0 done · 2 a person must fix it: no requeue · 75 asked to stop: requeue · else crash: requeue until this job has
#   crashed MAX_RESTARTS times. The trainer itself refuses (2) when starts make no progress.
set -euo pipefail

# USR2 comes here when the site or scancel names the batch shell (--signal=B:, --batch): the tasks are asked, as if it had
# come to them. TERM reaches the tasks by itself. This script waits for them in both cases.
asked='' fate=''
trap 'asked=USR2; ask_tasks' USR2
trap 'asked=TERM; ask_slurm' TERM

# Of an array, one task has the array's own number as its SLURM_JOB_ID, which means all tasks to scontrol.
this_job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID:-}}
this_job=${this_job:-${SLURM_JOB_ID:-}}

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

ask_tasks() { scancel --signal=USR2 "$this_job" || true; }

# patient SECONDS COMMAND...: a Slurm command's answer. Controllers restart: while scontrol says that none is up, the command is
# asked again, for so long, and once more when one is up; what it says then is final.
patient() {
    local until=$((SECONDS + $1)) answer status was_up=0
    shift
    while true; do
        status=0
        answer=$(timeout 60 "$@") || status=$?
        ((status != 0 && SECONDS < until)) || break
        if timeout 20 scontrol ping 2>/dev/null | grep -q ' UP'; then
            ((!was_up)) || break
            was_up=1
        else
            was_up=0
        fi
        sleep 5
    done
    printf '%s\n' "$answer"
    return "$status"
}

# What Slurm means by TERM: it asks (preemption's grace, the time limit), it has put the job back into the queue itself (a lost
# node, scontrol requeue, preemption), or someone has cancelled the job. Where the controller does not answer, nobody knows:
# then a stop that ends well is followed by a requeue.
ask_slurm() {
    local job
    # Slurm kills 30 s after TERM: no second try. It may send TERM again meanwhile, which must not end the question.
    job=$(trap '' TERM; timeout -s KILL 10 scontrol show job -o "$this_job") || job=
    if [[ -z $job || $job == *' JobState=RUNNING '* || $job == *' Reason=TimeLimit '* ]]; then
        fate=
    elif [[ $job == *" Restarts=$((${SLURM_RESTART_COUNT:-0} + 1)) "* ]]; then
        fate="Slurm starts it again by itself"
    else
        fate="cancelled, so not started again"
    fi
    say "TERM: waiting for the tasks"
}

# Site settings: slurm/cluster.env, or the file that CLSGEN_CLUSTER_ENV names.
load_site() {
    local file=${CLSGEN_CLUSTER_ENV:-$ROOT/slurm/cluster.env}
    if [[ -f $file ]]; then
        set +u # site files and the modules that they load name variables that are not set
        # shellcheck source=/dev/null
        source "$file" || die "$file ends with status $?: its last command failed; make that an if, or fix it"
        set -u
    elif [[ -n ${CLSGEN_CLUSTER_ENV:-} ]]; then
        die "CLSGEN_CLUSTER_ENV names $file, which does not exist"
    fi
}

# Where rank 0 listens: the job's first node, on a port that other jobs of this node are unlikely to have, below those that
# the kernel gives to outgoing connections. Who the ranks are, srun says, not the shell that submitted.
rendezvous() {
    CLSGEN_NODES=$(scontrol show hostnames "$SLURM_JOB_NODELIST" 2>/dev/null) || CLSGEN_NODES=$SLURM_JOB_NODELIST
    export CLSGEN_NODES
    export MASTER_ADDR=${CLSGEN_MASTER_ADDR:-${CLSGEN_NODES%%$'\n'*}}
    export MASTER_PORT=${CLSGEN_MASTER_PORT:-$((20000 + SLURM_JOB_ID % 12000))}
    unset RANK LOCAL_RANK WORLD_SIZE LOCAL_SIZE LOCAL_WORLD_SIZE
    [[ ${DRY_RUN:-0} != 1 && -z ${CLSGEN_MASTER_ADDR:-} ]] || return 0
    # A node's name in Slurm need not be one that DNS knows; its address is.
    getent ahosts "$MASTER_ADDR" >/dev/null && return
    local address
    address=$(patient 60 scontrol show node -o "$MASTER_ADDR" | grep -o ' NodeAddr=[^ ]*' | cut -d = -f 2) || address=
    if [[ -z $address ]] || ! getent ahosts "$address" >/dev/null; then
        die "the first node's name '$MASTER_ADDR' does not resolve, nor does its NodeAddr '$address': set CLSGEN_MASTER_ADDR to an address of it that the other nodes reach"
    fi
    export MASTER_ADDR=$address
}

# What would make the job run something else than it was told, or for ever.
refuse_contradictions() {
    local word flag value name
    while (($#)); do
        word=$1 flag=${1%%=*} value=${2:-}
        shift
        [[ $word != *=* ]] || value=${word#*=}
        case $flag in
            --output_dir)
                [[ $(realpath -m "$value") == "$OUTPUT" ]] || die "$word: the job's folder is OUTPUT, $OUTPUT; set that, as bad nodes and logs are kept there too"
                ;;
            --resume)
                [[ $value == auto ]] || die "$word: a job always resumes from its last checkpoint; to start over give OUTPUT another folder"
                ;;
            --overwrite) die "$word: a job always resumes from its last checkpoint; to start over give OUTPUT another folder" ;;
        esac
    done
    for name in MAX_RESTARTS MAX_BAD_NODES PREFLIGHT PREFLIGHT_TIMEOUT SIGNAL_LEAD; do
        [[ ${!name:-0} =~ ^(0|[1-9][0-9]*)$ ]] || die "$name is '${!name}', expected a whole number"
    done
    xargs -n 1 <<<"${SRUN_FLAGS:-}" >/dev/null 2>&1 || die "SRUN_FLAGS is '$SRUN_FLAGS', with an unclosed quote"
    # With --export=NONE nothing of the submitting shell comes along, and the script's own RECIPE and OUTPUT would be taken.
    if [[ ,${SLURM_EXPORT_ENV:-ALL}, == *,@(NONE|NIL),* && ${EXPORT_NONE_OK:-0} != 1 ]]; then
        die "--export=${SLURM_EXPORT_ENV} (or SBATCH_EXPORT): RECIPE and OUTPUT of the submitting shell are missing; use --export=ALL, or --export=NONE,EXPORT_NONE_OK=1 where the script sets them itself"
    fi
    local limit lead=${SIGNAL_LEAD:-600}
    if [[ ${DRY_RUN:-0} != 1 && -n ${SLURM_JOB_END_TIME:-} && -n ${SLURM_JOB_START_TIME:-} ]]; then
        limit=$((SLURM_JOB_END_TIME - SLURM_JOB_START_TIME))
        ((limit > 2 * lead)) || die "--time is $limit s, and the job is asked to stop $lead s before its end (--signal): give it more than $((2 * lead)) s"
    fi
}

# What ran, on what: appended for each start. A tool that hangs, as on a sick chip, must not hold up the job: the preflight
# is there to name it.
record() {
    echo "--- $(date '+%F %T') job $SLURM_JOB_ID restart ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST"
    run timeout -k 5 20 git -C "$ROOT" describe --always --dirty || echo "no git here"
    run timeout -k 5 20 nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || echo "no nvidia-smi here"
    run timeout -k 5 60 "$PYTHON" -m pip freeze || echo "no pip here"
}

# The code may have changed while the job waited in the queue: that is said.
compare_code() {
    local now before file=$OUTPUT/code_version
    now=$(timeout -k 5 20 git -C "$ROOT" describe --always --dirty 2>/dev/null) || return 0
    before=$(tail -n 1 "$file" 2>/dev/null) || before=$now
    [[ $before == "$now" ]] || say "the code has changed since the last start: $before, now $now"
    [[ $before == "$now" && -f $file ]] || echo "$now" >>"$file"
}

# The words before a command that put it into a container, one a line; none without. Under pyxis srun does it.
container() {
    local mount name
    case ${CONTAINER:-none} in
        none | pyxis) return ;;
        apptainer) printf '%s\n' apptainer exec "$([[ -e /dev/kfd ]] && echo --rocm || echo --nv)" --pwd "$ROOT" --bind "$(join , "${mounts[@]}")" ;;
        enroot) # takes along no environment, and knows no folder to start in
            printf '%s\n' enroot start
            for mount in "${mounts[@]}"; do printf '%s\n' --mount "$mount"; done
            for name in $(environment); do printf '%s\n' --env "$name"; done
            ;;
        *) die "CONTAINER is '$CONTAINER', expected none, pyxis, enroot or apptainer" ;;
    esac
    echo "$CONTAINER_IMAGE"
    # shellcheck disable=SC2016  # expands in the container
    [[ $CONTAINER != enroot ]] || printf '%s\n' bash -c 'cd "$0" && exec "$@"' "$ROOT"
}

# Names that tasks need from their environment.
environment() {
    {
        compgen -e | grep -E '^(SLURM|CLSGEN|MASTER|NCCL|RCCL|GLOO|TORCH|HF|OMP|CUDA|ROCR|HIP|NVIDIA|FI_|UCX_|LD_LIBRARY_PATH|PYTHON)' || true
        printf '%s\n' SLURM_{PROCID,LOCALID,NODEID,NTASKS,STEP_TASKS_PER_NODE} SLURMD_NODENAME CUDA_VISIBLE_DEVICES
    } | sort -u
}

# join SEPARATOR WORD...
join() {
    local IFS=$1
    shift
    echo "$*"
}

# What each task runs, with the step's name (preflight, rank) as $0. Bash stays in between, for three things: a log per task
# (task 0's is the job's main log too); $0.done as proof that task 0 ended well, since srun says 0 too when it loses its
# node; and in `failed` who ended badly and how, the first one first: srun kills the others then and reports the highest
# status, which is often theirs.
#
# 75 ends as 0, once it is written down, or srun would kill the other ranks on their way out. In the preflight task 0 judges,
# and must outlive the others to do so: they always end with 0.
#
# Signals are the trainer's business: bash and tee outlive them, the trainer has handlers of its own.
task() {
    # shellcheck disable=SC2016  # expands in the task
    printf '%s' '
        trap : USR2 TERM
        log=$CLSGEN_LOGS/$0-$SLURM_PROCID.log
        if [ "$SLURM_PROCID" = 0 ]; then "$@" 2>&1 | (trap "" USR2 TERM; exec tee -a "$log"); status=${PIPESTATUS[0]}
        else "$@" >>"$log" 2>&1; status=$?; fi
        [ "$0" = preflight ] && [ "$SLURM_PROCID" != 0 ] && exit 0
        if [ "$status" != 0 ]; then
            echo "$status $0 $SLURM_PROCID on ${SLURMD_NODENAME:-?}" >>"$CLSGEN_LOGS/failed" || exit "$status"
            [ "$status" != 75 ] || exit 0
        elif [ "$SLURM_PROCID" = 0 ]; then date >"$CLSGEN_LOGS/$0.done" || exit 1; fi
        exit "$status"'
}

# step NAME SRUN_FLAG... -- COMMAND...: run it as the job's tasks, wait for their end, also when a signal interrupts the wait,
# and leave in `ended` how that was: its first word is the status.
step() {
    local name=$1 status=0 pid
    shift
    # All of the job's nodes, whatever became of some of them meanwhile; ranks of a node next to each other.
    local -a srun=(srun --export=ALL --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --distribution=block)
    srun+=(${SLURM_JOB_NUM_NODES:+--nodes="$SLURM_JOB_NUM_NODES"} ${SLURM_NTASKS:+--ntasks="$SLURM_NTASKS"})
    local -a more
    mapfile -t more < <(xargs -rn 1 printf '%s\n' <<<"${SRUN_FLAGS:-}")
    srun+=(${more[@]+"${more[@]}"})
    if [[ ${CONTAINER:-none} == pyxis ]]; then
        srun+=(--container-image="$CONTAINER_IMAGE" --container-workdir="$ROOT" --container-mounts="$(join , "${mounts[@]}")")
    fi
    while [[ $1 != -- ]]; do
        srun+=("$1")
        shift
    done
    shift
    srun+=(bash -c "$(task)" "$name" ${words[@]+"${words[@]}"} "$@")
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        run "${srun[@]}"
        return
    fi
    if [[ -n $asked ]]; then
        ended="143 $asked came before step '$name'"
        return
    fi
    "${srun[@]}" &
    pid=$!
    while wait "$pid" || status=$?; kill -0 "$pid" 2>/dev/null; do status=0; done
    if [[ -s $CLSGEN_LOGS/failed ]]; then
        ended=$(head -n 1 "$CLSGEN_LOGS/failed")
        # srun that loses a task asks the others to stop: that is no stop that anybody asked this job for.
        if [[ $ended == 75\ * && $status != 0 && -z $asked ]]; then
            ended=$(grep -v -m 1 '^75 ' "$CLSGEN_LOGS/failed") || ended="$status srun (it lost a task that said nothing, and stopped the others)"
        fi
    elif [[ -s $CLSGEN_LOGS/$name.done ]]; then
        ended=0
    else
        ended="$((status ? status : 1)) srun (it ended with $status, and task 0 did not say that all was done)"
    fi
}

# The nodes that were found bad, by name.
bad_nodes() { [[ ! -f $OUTPUT/bad_nodes ]] || cut -d ' ' -f 1 "$OUTPUT/bad_nodes" | sort -u; }

# Look at the nodes before each start: chips, disks, speed, links. Those with a verdict against them are left out; without a
# verdict nobody is blamed.
preflight() {
    [[ ${PREFLIGHT:-1} == 1 ]] || return 0
    # The wait: longer than rank 0 takes for its verdict once another is gone (preflight/run.py).
    local timeout=${PREFLIGHT_TIMEOUT:-300}
    local -a look=(step preflight --wait=$((timeout * 5)) --time=$((10 + timeout / 10)) -- "$PYTHON" -m clsgen_dist preflight
        --output_dir "$OUTPUT" --timeout_s "$timeout")
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        "${look[@]}"
        return
    fi
    local before
    before=$(bad_nodes | wc -l)
    grep -qxF -f <(bad_nodes) <<<"$CLSGEN_NODES" && leave_out
    "${look[@]}" >/dev/null
    if [[ $ended == 0 ]]; then
        say "$(tail -n 1 "$CLSGEN_LOGS/preflight-0.log")"
        return
    fi
    grep -h '^error:' "$CLSGEN_LOGS"/preflight-*.log | sort -u | head -n 20 | grep . || tail -n 20 "$CLSGEN_LOGS/preflight-0.log"
    (($(bad_nodes | wc -l) == before)) || leave_out
    finish
}

# Start again without the bad nodes, as long as there are enough others, and not too many were found bad.
leave_out() {
    local bad nodes left excluded job required
    bad=$(bad_nodes)
    if (($(wc -l <<<"$bad") > ${MAX_BAD_NODES:-8})); then
        give_up "more than MAX_BAD_NODES (${MAX_BAD_NODES:-8}) bad nodes: something else is wrong; see $OUTPUT/bad_nodes, fix it, delete the file"
    fi
    job=$(patient 300 scontrol show job -o "$this_job") || job=
    required=$(grep -o ' ReqNodeList=[^( ]*' <<<"$job" | cut -d = -f 2) || true
    if [[ -n $required ]] && required=$(scontrol show hostnames "$required" | grep -xF "$bad"); then
        give_up "--nodelist asks for ${required//$'\n'/, }, which was found bad: see $OUTPUT/bad_nodes; submit without it, or fix it and delete its line"
    fi
    excluded=$(grep -o ' ExcNodeList=[^( ]*' <<<"$job" | cut -d = -f 2) || true
    bad=$({ echo "$bad"; [[ -z $excluded ]] || scontrol show hostnames "$excluded"; } | sort -u)
    # Where nobody can say how many there are, Slurm's queue is left to find out.
    if nodes=$(patient 300 sinfo -h -N -p "$SLURM_JOB_PARTITION" -o '%N %T'); then
        left=$(grep -vE ' (down|drain|fail|maint|unk)|\*$' <<<"$nodes" | cut -d ' ' -f 1 | sort -u | grep -cvxF "$bad") || true
        if ((left < SLURM_JOB_NUM_NODES)); then
            give_up "$left nodes are left besides bad, excluded and drained ones, $SLURM_JOB_NUM_NODES are needed: see $OUTPUT/bad_nodes, fix them, delete their lines"
        fi
    fi
    bad=$(paste -sd , <<<"$bad")
    # Says that a running task cannot be changed, having changed those that wait.
    [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || scontrol update JobId="$SLURM_ARRAY_JOB_ID" ExcNodeList="$bad" >/dev/null 2>&1 || true
    again "bad nodes excluded: $bad" 1 patient 300 scontrol update JobId="$this_job" ExcNodeList="$bad"
}

# again WHY STATUS [COMMAND...]: this job once more, from its last checkpoint, with COMMAND once it is back in the queue; of an
# array (sbatch --array=1-9%1) the next task, for sites whose jobs may not requeue themselves. STATUS ends the job where
# nothing comes after it.
again() {
    local why=$1 status=$2 error waiting
    shift 2
    if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then
        if waiting=$(patient 300 squeue -h -t PENDING -j "$SLURM_ARRAY_JOB_ID") && [[ -z $waiting ]]; then
            say "$why: no task of the array is left; submit it again"
            exit "$status"
        fi
        say "$why: the next task of the array continues"
        exit 0 # what waits for the array (afterok) waits for all its tasks to end well
    fi
    trap '' TERM # requeueing ends this script too, and what comes after it must still be done
    if ! error=$(patient 300 scontrol requeue "$this_job" 2>&1); then
        say "$why: not requeued ($error); submit again, or as an array of jobs one after the other: sbatch --array=1-9%1"
        exit "$status"
    fi
    say "$why: requeued (restart $((${SLURM_RESTART_COUNT:-0} + 1)))"
    "$@"
    exit 0
}

# give_up WHY [STATUS]: the job ends, and with it what is left of its array.
give_up() {
    [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || patient 300 scancel --state=PENDING "$SLURM_ARRAY_JOB_ID" || true
    say "$1"
    exit "${2:-2}"
}

# How often this job has crashed. Stops that were asked for, bad nodes, and what Slurm requeues by itself do not count.
crashes() { find "$OUTPUT/logs" -path "*/$SLURM_JOB_ID.*/crash" | wc -l; }

# What becomes of the job, by how its step ended.
finish() {
    local status=${ended%% *} most=${MAX_RESTARTS:-20}
    if [[ $status == 0 ]]; then
        [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || date >"$array_done"
        say "done"
        exit 0
    elif [[ -n $fate ]]; then
        say "status $ended: $fate"
        exit 143
    elif [[ $status == 75 ]]; then
        again "asked to stop" 75
    elif [[ $status == 2 || $status == 126 || $status == 127 ]]; then
        give_up "status $ended: see $CLSGEN_LOGS; fix it, then sbatch again"
    fi
    echo "$ended" >"$CLSGEN_LOGS/crash" || give_up "status $ended, and $CLSGEN_LOGS cannot be written: make room, then sbatch again"
    (($(crashes) <= most)) || give_up "status $ended, crash number $(crashes) of this job (MAX_RESTARTS is $most): giving up; see $CLSGEN_LOGS" "$status"
    again "status $ended" "$status"
}

# Tasks of an array write to one folder, so one runs at a time: also where %1 was forgotten. A task that was started beside
# another goes back into the queue, to take its turn; where it may not, it ends.
one_at_a_time() {
    [[ -n ${SLURM_ARRAY_JOB_ID:-} ]] || return 0
    scontrol update JobId="$SLURM_ARRAY_JOB_ID" ArrayTaskThrottle=1 >/dev/null 2>&1 || true
    local first
    first=$(patient 300 squeue -h -t RUNNING -j "$SLURM_ARRAY_JOB_ID" -o %K | sort -n | head -n 1) || first=
    if [[ -n $first && $first != "${SLURM_ARRAY_TASK_ID:-}" ]]; then
        say "task $first of this array is running: this one waits for its turn (submit with --array=1-9%1)"
        trap '' TERM # requeueing ends this script too
        patient 300 scontrol requeue "$this_job" >/dev/null 2>&1 || say "it may not be requeued, so it ends"
        exit 0
    fi
}

# train ARGUMENTS...: the whole job. ARGUMENTS go to clsgen train.
train() {
    ROOT=${CLSGEN_ROOT:-${SLURM_SUBMIT_DIR:-$PWD}}
    load_site
    need RECIPE "set it in the job script, like RECIPE=configs/70b_zero3.yaml"
    need OUTPUT "set it in the job script, to a folder that all nodes see"
    need SLURM_JOB_ID "this runs under Slurm: sbatch slurm/train_70b.sh (DRY_RUN=1 SLURM_JOB_ID=1 SLURM_JOB_NODELIST=n1 shows the commands)"
    [[ ${CONTAINER:-none} == none ]] || need CONTAINER_IMAGE "name the image in slurm/cluster.env"
    cd "$ROOT"
    OUTPUT=$(realpath -m "$OUTPUT")
    refuse_contradictions "$@"
    PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
    export ROOT OUTPUT CLSGEN_LOGS=$OUTPUT/logs/$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
    export PYTHONPATH=$ROOT:$ROOT/kernels${PYTHONPATH:+:$PYTHONPATH}
    rendezvous
    local prefix ended='' array_done=$OUTPUT/logs/${SLURM_ARRAY_JOB_ID:-}.done
    local -a mounts=("$ROOT:$ROOT" "$OUTPUT:$OUTPUT" ${CONTAINER_MOUNTS:+"$CONTAINER_MOUNTS"}) words=()
    IFS=, read -ra mounts <<<"$(join , "${mounts[@]}")"
    prefix=$(container) || exit 2
    [[ -z $prefix ]] || mapfile -t words <<<"$prefix"
    # The job's own settings come last: a --config among ARGUMENTS must not move the run.
    local -a command=("$PYTHON" -m clsgen_dist train --config "$RECIPE" "$@" --output_dir "$OUTPUT" --resume auto)
    [[ -z ${CLSGEN_COMMAND:-} ]] || command=(bash -c "$CLSGEN_COMMAND")
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        run mkdir -p "$CLSGEN_LOGS"
        record
        preflight
        step rank --wait=60 -- "${command[@]}"
        echo "# To start again, and where nodes are bad:"
        run scontrol requeue "$this_job"
        run scontrol update JobId="$this_job" ExcNodeList="<names in $OUTPUT/bad_nodes>"
        return
    fi
    if [[ -n ${SLURM_ARRAY_JOB_ID:-} && -s $array_done ]]; then
        say "a task of this array has completed the run ($array_done): nothing left to do"
        exit 0
    fi
    { mkdir -p "$CLSGEN_LOGS" && date >"$CLSGEN_LOGS/started"; } || die "$CLSGEN_LOGS cannot be written: make room, or set OUTPUT to another folder"
    one_at_a_time
    compare_code
    record >>"$OUTPUT/environment.txt" 2>&1 & # not while the GPUs wait
    preflight
    step rank --wait=60 -- "${command[@]}"
    finish
}
