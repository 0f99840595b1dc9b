#!/usr/bin/env bash
# What every job runs. Sourced by train_*.sh, which hold only directives and settings, and by serve_70b.sh.
#
#   RECIPE   YAML recipe                       OUTPUT   the run's folder, on a file system that all nodes share
#
# A job has two steps, each with one task per GPU: a preflight check of the nodes, then clsgen train. The exit status of the
# tasks (clsgen_dist/errors.py) decides in finish() what happens to the job:
#   0 done · 2 a person must fix it: no requeue · 75 asked to stop: requeue · other: a crash, requeue until this job has
#   crashed more than MAX_RESTARTS times. The trainer itself exits with 2 when restarts make no progress.
set -euo pipefail

# With --signal=B: or scancel --batch, USR2 reaches this shell but not the tasks: forward it to them. Slurm sends TERM to the tasks
# itself. In both cases this script waits for them to end.
stop_signal='' no_requeue_reason=''
trap 'stop_signal=USR2; signal_tasks' USR2
trap 'stop_signal=TERM; check_why_term' TERM

# One task of an array has the array's own ID as its SLURM_JOB_ID, and scontrol takes that ID to mean all tasks.
this_job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID:-}}
this_job=${this_job:-${SLURM_JOB_ID:-}}

log() { printf '== %s %s\n' "$(date '+%F %T')" "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# require NAME FIX: exit unless the variable NAME is set.
require() { [[ -n ${!1:-} ]] || die "$1 is not set; $2"; }

# run COMMAND...: run it; with DRY_RUN=1 print it instead, quoted for a shell.
run() {
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

signal_tasks() { scancel --signal=USR2 "$this_job" || true; }

# slurm_retry SECONDS COMMAND...: print the output of a Slurm command. Controllers restart: while scontrol ping finds none up,
# retry for up to SECONDS, and once more after one is up; the result of that last try counts.
slurm_retry() {
    local until=$((SECONDS + $1)) output status was_up=0
    shift
    while true; do
        status=0
        output=$(timeout 60 "$@") || status=$?
        ((status != 0 && SECONDS < until)) || break
        if timeout 20 scontrol ping 2>/dev/null | grep -q ' UP'; then
            ((!was_up)) || break
            was_up=1
        else
            was_up=0
        fi
        sleep 5
    done
    printf '%s\n' "$output"
    return "$status"
}

# Find out why Slurm sent TERM: it only asks the job to stop (preemption with a grace time, the time limit), it has requeued the
# job itself (a lost node, scontrol requeue, preemption), or somebody has cancelled the job. In the last two cases this script
# must not requeue. If the controller does not answer, the reason is unknown: a clean stop is then followed by a requeue.
check_why_term() {
    local job
    # No retry: Slurm kills the job 30 s after TERM. It may send TERM again meanwhile, which must not interrupt scontrol.
    job=$(trap '' TERM; timeout -s KILL 10 scontrol show job -o "$this_job") || job=
    if [[ -z $job || $job == *' JobState=RUNNING '* || $job == *' Reason=TimeLimit '* ]]; then
        no_requeue_reason=
    elif [[ $job == *" Restarts=$((${SLURM_RESTART_COUNT:-0} + 1)) "* ]]; then
        no_requeue_reason="Slurm has already requeued it"
    else
        no_requeue_reason="cancelled, so not requeued"
    fi
    log "received TERM: waiting for the tasks to end"
}

# Source the site's settings: slurm/cluster.env, or the file in CLSGEN_CLUSTER_ENV.
load_site() {
    local file=${CLSGEN_CLUSTER_ENV:-$ROOT/slurm/cluster.env}
    if [[ -f $file ]]; then
        set +u # site files, and the modules that they load, use unset variables
        # shellcheck source=/dev/null
        source "$file" || die "$file ends with status $?: its last command failed; make that an if, or fix it"
        set -u
    elif [[ -n ${CLSGEN_CLUSTER_ENV:-} ]]; then
        die "CLSGEN_CLUSTER_ENV names $file, which does not exist"
    fi
}

# Where rank 0 listens: the job's first node, on a port that other jobs on this node are unlikely to use, below the kernel's
# range for outgoing connections. srun sets the ranks, so values from the submitting shell are unset.
rendezvous() {
    CLSGEN_NODES=$(scontrol show hostnames "$SLURM_JOB_NODELIST" 2>/dev/null) || CLSGEN_NODES=$SLURM_JOB_NODELIST
    export CLSGEN_NODES
    export MASTER_ADDR=${CLSGEN_MASTER_ADDR:-${CLSGEN_NODES%%$'\n'*}}
    export MASTER_PORT=${CLSGEN_MASTER_PORT:-$((20000 + SLURM_JOB_ID % 12000))}
    unset RANK LOCAL_RANK WORLD_SIZE LOCAL_SIZE LOCAL_WORLD_SIZE
    [[ ${DRY_RUN:-0} != 1 && -z ${CLSGEN_MASTER_ADDR:-} ]] || return 0
    # DNS may not know a node's name in Slurm; then use its NodeAddr.
    getent ahosts "$MASTER_ADDR" >/dev/null && return
    local address
    address=$(slurm_retry 60 scontrol show node -o "$MASTER_ADDR" | grep -o ' NodeAddr=[^ ]*' | cut -d = -f 2) || address=
    if [[ -z $address ]] || ! getent ahosts "$address" >/dev/null; then
        die "the first node's name '$MASTER_ADDR' does not resolve, nor does its NodeAddr '$address': set CLSGEN_MASTER_ADDR to an address of it that the other nodes can reach"
    fi
    export MASTER_ADDR=$address
}

# Refuse arguments and settings that conflict with those of the job, or would make it restart forever.
check_arguments() {
    local argument flag value name
    while (($#)); do
        argument=$1 flag=${1%%=*} value=${2:-}
        shift
        [[ $argument != *=* ]] || value=${argument#*=}
        case $flag in
            --output_dir)
                [[ $(realpath -m "$value") == "$OUTPUT" ]] || die "$argument: the job writes to OUTPUT, $OUTPUT, which also holds its logs and bad nodes; set OUTPUT instead"
                ;;
            --resume)
                [[ $value == auto ]] || die "$argument: a job always resumes from its last checkpoint; to start over set OUTPUT to another folder"
                ;;
            --overwrite) die "$argument: a job always resumes from its last checkpoint; to start over set OUTPUT to another folder" ;;
        esac
    done
    for name in MAX_RESTARTS MAX_BAD_NODES PREFLIGHT PREFLIGHT_TIMEOUT SIGNAL_LEAD; do
        [[ ${!name:-0} =~ ^(0|[1-9][0-9]*)$ ]] || die "$name is '${!name}', expected a whole number"
    done
    xargs -n 1 <<<"${SRUN_FLAGS:-}" >/dev/null 2>&1 || die "SRUN_FLAGS is '$SRUN_FLAGS', with an unclosed quote"
    # --export=NONE drops the submitting shell's variables: the job would silently use the script's default RECIPE and OUTPUT.
    if [[ ,${SLURM_EXPORT_ENV:-ALL}, == *,@(NONE|NIL),* && ${EXPORT_NONE_OK:-0} != 1 ]]; then
        die "--export=${SLURM_EXPORT_ENV} (or SBATCH_EXPORT): RECIPE and OUTPUT of the submitting shell are missing; use --export=ALL, or --export=NONE,EXPORT_NONE_OK=1 if the script sets them itself"
    fi
    local limit lead=${SIGNAL_LEAD:-600}
    if [[ ${DRY_RUN:-0} != 1 && -n ${SLURM_JOB_END_TIME:-} && -n ${SLURM_JOB_START_TIME:-} ]]; then
        limit=$((SLURM_JOB_END_TIME - SLURM_JOB_START_TIME))
        ((limit > 2 * lead)) || die "--time is $limit s, and the job is asked to stop $lead s before its end (--signal): give it more than $((2 * lead)) s"
    fi
}

# Print commit, GPUs and packages of this start. With timeouts, since a tool that hangs (nvidia-smi on a bad GPU) must not hold
# up the job: finding the bad node is the preflight's work.
print_environment() {
    echo "--- $(date '+%F %T') job $SLURM_JOB_ID restart ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST"
    run timeout -k 5 20 git -C "$ROOT" describe --always --dirty || echo "git failed"
    run timeout -k 5 20 nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || echo "nvidia-smi failed"
    run timeout -k 5 60 "$PYTHON" -m pip freeze || echo "pip failed"
}

# Log if the code has changed since the last start: the job may have waited in the queue for days.
log_code_change() {
    local now before file=$OUTPUT/code_version
    now=$(timeout -k 5 20 git -C "$ROOT" describe --always --dirty 2>/dev/null) || return 0
    before=$(tail -n 1 "$file" 2>/dev/null) || before=$now
    [[ $before == "$now" ]] || log "the code has changed since the last start: $before, now $now"
    [[ $before == "$now" && -f $file ]] || echo "$now" >>"$file"
}

# Print the command prefix that runs a task in the container, one word per line. Empty without a container, and with pyxis, where
# srun starts it.
container_prefix() {
    local mount name
    case ${CONTAINER:-none} in
        none | pyxis) return ;;
        apptainer) printf '%s\n' apptainer exec "$([[ -e /dev/kfd ]] && echo --rocm || echo --nv)" --pwd "$ROOT" --bind "$(join , "${mounts[@]}")" ;;
        enroot) # passes no environment on, and has no option for the working directory
            printf '%s\n' enroot start
            for mount in "${mounts[@]}"; do printf '%s\n' --mount "$mount"; done
            for name in $(variable_names); do printf '%s\n' --env "$name"; done
            ;;
        *) die "CONTAINER is '$CONTAINER', expected none, pyxis, enroot or apptainer" ;;
    esac
    echo "$CONTAINER_IMAGE"
    # shellcheck disable=SC2016  # expands in the container
    [[ $CONTAINER != enroot ]] || printf '%s\n' bash -c 'cd "$0" && exec "$@"' "$ROOT"
}

# Names of the environment variables that tasks need.
variable_names() {
    {
        compgen -e | grep -E '^(SLURM|CLSGEN|MASTER|NCCL|RCCL|GLOO|TORCH|VLLM|HF|OMP|CUDA|ROCR|HIP|NVIDIA|FI_|UCX_|LD_LIBRARY_PATH|PYTHON)' || true
        printf '%s\n' SLURM_{PROCID,LOCALID,NODEID,NTASKS,STEP_TASKS_PER_NODE} SLURMD_NODENAME CUDA_VISIBLE_DEVICES
    } | sort -u
}

# join SEPARATOR WORD...
join() {
    local IFS=$1
    shift
    echo "$*"
}

# The script that each task runs, with the step's name (preflight, rank) as $0. It wraps the command for three reasons:
#   - a log per task; task 0's output also goes to the job's log;
#   - $0.done proves that task 0 succeeded: srun also exits with 0 when it loses that task's node;
#   - `failed` lists the tasks that ended with another status than 0, in order: srun kills the others after a failure, and reports
#     the highest status, which is often theirs.
#
# A task that ends with 75 records it and exits with 0; otherwise srun would kill the other ranks while they exit. In the
# preflight, task 0 gives the verdict and must outlive the others, so they always exit with 0.
#
# The trainer has its own signal handlers. Bash and tee survive the signals, and end after it.
task_script() {
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

# step NAME SRUN_FLAG... -- COMMAND...: run COMMAND in every task and wait for all of them, even if a signal interrupts the wait.
# Sets `ended`: its first word is the status; after a failure, the rest says where it occurred.
step() {
    local name=$1 status=0 pid
    shift
    # Always all of the job's nodes, even if some have gone down meanwhile. Ranks of a node are consecutive.
    local -a srun=(srun --export=ALL --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --distribution=block)
    srun+=(${SLURM_JOB_NUM_NODES:+--nodes="$SLURM_JOB_NUM_NODES"} ${SLURM_NTASKS:+--ntasks="$SLURM_NTASKS"})
    local -a site_flags
    mapfile -t site_flags < <(xargs -rn 1 printf '%s\n' <<<"${SRUN_FLAGS:-}")
    srun+=(${site_flags[@]+"${site_flags[@]}"})
    if [[ ${CONTAINER:-none} == pyxis ]]; then
        srun+=(--container-image="$CONTAINER_IMAGE" --container-workdir="$ROOT" --container-mounts="$(join , "${mounts[@]}")")
    fi
    while [[ $1 != -- ]]; do
        srun+=("$1")
        shift
    done
    shift
    srun+=(bash -c "$(task_script)" "$name" ${prefix[@]+"${prefix[@]}"} "$@")
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        run "${srun[@]}"
        return
    fi
    if [[ -n $stop_signal ]]; then
        ended="143 received $stop_signal before step '$name'"
        return
    fi
    "${srun[@]}" &
    pid=$!
    while wait "$pid" || status=$?; kill -0 "$pid" 2>/dev/null; do status=0; done
    if [[ -s $CLSGEN_LOGS/failed ]]; then
        ended=$(head -n 1 "$CLSGEN_LOGS/failed")
        # When srun loses a task, it stops the others, which then end with 75. Nobody asked the job to stop, so it is a crash.
        if [[ $ended == 75\ * && $status != 0 && -z $stop_signal ]]; then
            ended=$(grep -v -m 1 '^75 ' "$CLSGEN_LOGS/failed") || ended="$status srun (a task was lost without recording its status, and srun stopped the others)"
        fi
    elif [[ -s $CLSGEN_LOGS/$name.done ]]; then
        ended=0
    else
        ended="$((status ? status : 1)) srun (exit status $status, but task 0 did not record success)"
    fi
}

# Print the names of the bad nodes.
bad_nodes() { [[ ! -f $OUTPUT/bad_nodes ]] || cut -d ' ' -f 1 "$OUTPUT/bad_nodes" | sort -u; }

# Check the nodes before each start: GPUs, disks, speed, links. Bad nodes are excluded. If the preflight itself fails, there is no
# verdict, and no node is excluded.
preflight() {
    [[ ${PREFLIGHT:-1} == 1 ]] || return 0
    # --wait: longer than rank 0 needs for its verdict after another rank is gone (preflight/run.py).
    local timeout=${PREFLIGHT_TIMEOUT:-300}
    local -a check=(step preflight --wait=$((timeout * 5)) --time=$((10 + timeout / 10)) -- "$PYTHON" -m clsgen_dist preflight
        --output_dir "$OUTPUT" --timeout_s "$timeout")
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        "${check[@]}"
        return
    fi
    local before
    before=$(bad_nodes | wc -l)
    grep -qxF -f <(bad_nodes) <<<"$CLSGEN_NODES" && exclude_bad_nodes
    "${check[@]}" >/dev/null
    if [[ $ended == 0 ]]; then
        log "$(tail -n 1 "$CLSGEN_LOGS/preflight-0.log")"
        return
    fi
    grep -sh '^error:' "$CLSGEN_LOGS"/preflight-*.log | sort -u | head -n 20 | grep . || tail -n 20 "$CLSGEN_LOGS/preflight-0.log" 2>/dev/null || true
    (($(bad_nodes | wc -l) == before)) || exclude_bad_nodes
    finish
}

# Restart without the bad nodes. Give up if too few other nodes are left, or if more than MAX_BAD_NODES are bad.
exclude_bad_nodes() {
    local bad nodes left excluded job required
    bad=$(bad_nodes)
    if (($(wc -l <<<"$bad") > ${MAX_BAD_NODES:-8})); then
        give_up "more than MAX_BAD_NODES (${MAX_BAD_NODES:-8}) bad nodes: something else is wrong; see $OUTPUT/bad_nodes, fix it, delete the file"
    fi
    job=$(slurm_retry 300 scontrol show job -o "$this_job") || job=
    required=$(grep -o ' ReqNodeList=[^( ]*' <<<"$job" | cut -d = -f 2) || true
    if [[ -n $required ]] && required=$(scontrol show hostnames "$required" | grep -xF "$bad"); then
        give_up "--nodelist asks for ${required//$'\n'/, }, which was found bad: see $OUTPUT/bad_nodes; submit without it, or fix it and delete its line"
    fi
    excluded=$(grep -o ' ExcNodeList=[^( ]*' <<<"$job" | cut -d = -f 2) || true
    bad=$({ echo "$bad"; [[ -z $excluded ]] || scontrol show hostnames "$excluded"; } | sort -u)
    # If the partition's nodes cannot be listed, requeue anyway: the job then waits in the queue.
    if nodes=$(slurm_retry 300 sinfo -h -N -p "$SLURM_JOB_PARTITION" -o '%N %T'); then
        left=$(grep -vE ' (down|drain|fail|maint|unk)|\*$' <<<"$nodes" | cut -d ' ' -f 1 | sort -u | grep -cvxF "$bad") || true
        if ((left < SLURM_JOB_NUM_NODES)); then
            give_up "$left nodes are left that are not bad, excluded or drained; $SLURM_JOB_NUM_NODES are needed: see $OUTPUT/bad_nodes, fix them, delete their lines"
        fi
    fi
    bad=$(paste -sd , <<<"$bad")
    # Updates the pending tasks, although it reports an error because a running task cannot be updated.
    [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || scontrol update JobId="$SLURM_ARRAY_JOB_ID" ExcNodeList="$bad" >/dev/null 2>&1 || true
    restart "bad nodes excluded: $bad" 1 slurm_retry 300 scontrol update JobId="$this_job" ExcNodeList="$bad"
}

# restart WHY STATUS [COMMAND...]: requeue the job to resume from its last checkpoint, run COMMAND once it is back in the queue, and
# exit. In an array (sbatch --array=1-9%1, for sites where jobs may not requeue themselves) the next task continues instead. If
# neither is possible, exit with STATUS.
restart() {
    local why=$1 status=$2 error pending
    shift 2
    if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then
        if pending=$(slurm_retry 300 squeue -h -t PENDING -j "$SLURM_ARRAY_JOB_ID") && [[ -z $pending ]]; then
            log "$why: no task of the array is left; submit it again"
            exit "$status"
        fi
        log "$why: the next task of the array continues"
        exit 0 # a job that depends on the array (afterok) needs every task to exit with 0
    fi
    local next=$((${SLURM_RESTART_COUNT:-0} + 1))
    trap '' TERM # requeueing sends TERM to this script too, which still has to run COMMAND
    log "$why: requeueing (restart $next)" # first, since Slurm kills this script soon after
    # An answer can be lost although the job has been requeued.
    if ! error=$(slurm_retry 300 scontrol requeue "$this_job" 2>&1) && ! has_restart "$next"; then
        log "not requeued ($error): submit again, or as an array of jobs one after the other: sbatch --array=1-9%1"
        exit "$status"
    fi
    "$@"
    exit 0
}

# has_restart N: Slurm has requeued this job for its Nth restart.
has_restart() { [[ $(slurm_retry 60 scontrol show job -o "$this_job") == *" Restarts=$1 "* ]]; }

# give_up WHY [STATUS]: end the job, and cancel the pending tasks of its array.
give_up() {
    [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || slurm_retry 300 scancel --state=PENDING "$SLURM_ARRAY_JOB_ID" || true
    log "$1"
    exit "${2:-2}"
}

# Print how often this job has crashed. Requested stops, bad nodes and requeues by Slurm do not count.
crashes() { find "$OUTPUT/logs" -path "*/$SLURM_JOB_ID.*/crash" | wc -l; }

# End or restart the job, depending on how its step ended.
finish() {
    local status=${ended%% *} limit=${MAX_RESTARTS:-20}
    if [[ $status == 0 ]]; then
        [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || date >"$array_done"
        log "done"
        exit 0
    elif [[ -n $no_requeue_reason ]]; then
        log "status $ended: $no_requeue_reason"
        exit 143
    elif [[ $status == 75 ]]; then
        restart "asked to stop" 75
    elif [[ $status == 2 || $status == 126 || $status == 127 ]]; then
        give_up "status $ended: see $CLSGEN_LOGS; fix it, then sbatch again"
    fi
    echo "$ended" >"$CLSGEN_LOGS/crash" || give_up "status $ended, and $CLSGEN_LOGS cannot be written: make room, then sbatch again"
    (($(crashes) <= limit)) || give_up "status $ended, crash number $(crashes) of this job (MAX_RESTARTS is $limit): giving up; see $CLSGEN_LOGS" "$status"
    restart "status $ended" "$status"
}

# Tasks of an array write to the same folder, so only one may run at a time, even if %1 was forgotten. A task that starts while
# another is running goes back into the queue; if the site forbids that, it ends.
one_at_a_time() {
    [[ -n ${SLURM_ARRAY_JOB_ID:-} ]] || return 0
    scontrol update JobId="$SLURM_ARRAY_JOB_ID" ArrayTaskThrottle=1 >/dev/null 2>&1 || true
    local first
    first=$(slurm_retry 300 squeue -h -t RUNNING -j "$SLURM_ARRAY_JOB_ID" -o %K | sort -n | head -n 1) || first=
    if [[ -n $first && $first != "${SLURM_ARRAY_TASK_ID:-}" ]]; then
        log "task $first of this array is running: this one waits for its turn (submit with --array=1-9%1)"
        trap '' TERM # requeueing sends TERM to this script too
        slurm_retry 300 scontrol requeue "$this_job" >/dev/null 2>&1 || log "requeueing failed, so this task ends"
        exit 0
    fi
}

# open_job SCRIPT MOUNT...: site settings, the run's folder, the rendezvous and the container. Sets `mounts`, and `prefix`, which
# starts a command in the container.
open_job() {
    ROOT=${CLSGEN_ROOT:-${SLURM_SUBMIT_DIR:-$PWD}}
    load_site
    require OUTPUT "set it in the job script, to a folder that all nodes see"
    require SLURM_JOB_ID "this runs under Slurm: sbatch $1 (DRY_RUN=1 SLURM_JOB_ID=1 SLURM_JOB_NODELIST=n1 shows the commands)"
    [[ ${CONTAINER:-none} == none ]] || require CONTAINER_IMAGE "name the image in slurm/cluster.env"
    cd "$ROOT"
    OUTPUT=$(realpath -m "$OUTPUT")
    PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
    export ROOT OUTPUT CLSGEN_LOGS=$OUTPUT/logs/$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
    export PYTHONPATH=$ROOT:$ROOT/kernels${PYTHONPATH:+:$PYTHONPATH}
    rendezvous
    local lines
    mounts=("$ROOT:$ROOT" "$OUTPUT:$OUTPUT" "${@:2}" ${CONTAINER_MOUNTS:+"$CONTAINER_MOUNTS"}) prefix=()
    IFS=, read -ra mounts <<<"$(join , "${mounts[@]}")"
    lines=$(container_prefix) || exit 2
    [[ -z $lines ]] || mapfile -t prefix <<<"$lines"
}

# Make the folder of this start's logs.
make_logs() { { mkdir -p "$CLSGEN_LOGS" && date >"$CLSGEN_LOGS/started"; } || die "$CLSGEN_LOGS cannot be written: make room, or set OUTPUT to another folder"; }

# train ARGUMENTS...: run the job. ARGUMENTS are passed to clsgen train.
train() {
    open_job slurm/train_70b.sh
    require RECIPE "set it in the job script, like RECIPE=configs/70b_zero3.yaml"
    check_arguments "$@"
    local ended='' array_done=$OUTPUT/logs/${SLURM_ARRAY_JOB_ID:-}.done
    # The job's own settings come last, so that a --config in ARGUMENTS cannot change the run's folder.
    local -a command=("$PYTHON" -m clsgen_dist train --config "$RECIPE" "$@" --output_dir "$OUTPUT" --resume auto)
    [[ -z ${CLSGEN_COMMAND:-} ]] || command=(bash -c "$CLSGEN_COMMAND")
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        run mkdir -p "$CLSGEN_LOGS"
        print_environment
        preflight
        step rank --wait=60 -- "${command[@]}"
        echo "# To restart, and to exclude bad nodes:"
        run scontrol requeue "$this_job"
        run scontrol update JobId="$this_job" ExcNodeList="<names in $OUTPUT/bad_nodes>"
        return
    fi
    if [[ -n ${SLURM_ARRAY_JOB_ID:-} && -s $array_done ]]; then
        log "a task of this array has completed the run ($array_done): nothing left to do"
        exit 0
    fi
    make_logs
    one_at_a_time
    log_code_change
    print_environment >>"$OUTPUT/environment.txt" 2>&1 & # in the background: the GPUs need not wait for it
    preflight
    step rank --wait=60 -- "${command[@]}"
    finish
}
