#!/usr/bin/env bash
# Serve a folded export by vLLM on 2 nodes of 8 GPUs:
#   sbatch slurm/serve_70b.sh runs/70b/folded --max-model-len 4096
# Arguments after the folder go to vllm serve; Slurm flags go before the script's name, and override those below.
# Needs GPUs, not run: the tests put a stand-in in the place of vLLM (docs/slurm.md says what was tried on CPUs).
#
# One vLLM process a node, which starts one for each of its GPUs. Each layer is split over the GPUs of a node, which talk at every
# layer (tensor parallel); the layers are split over the nodes, which hand on one state a token (pipeline parallel). The first
# node answers at PORT; its URL is in OUTPUT/url while the server is ready. It ends at the job's time limit.
#SBATCH --job-name=clsgen-serve
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=96
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -euo pipefail
OUTPUT=${OUTPUT:-runs/70b/serve}
# Crashes after which the job is requeued: each start loads the model again.
MAX_RESTARTS=${MAX_RESTARTS:-3}
lib=${CLSGEN_ROOT:-${SLURM_SUBMIT_DIR:-.}}/slurm/lib.sh
[[ -r $lib ]] || { echo "error: $lib does not exist: submit from the checkout, or set CLSGEN_ROOT to it" >&2; exit 2; }
# shellcheck source=slurm/lib.sh
source "$lib"

# check_serving FOLDER ARGUMENTS...: refuse a folder without class logits, and arguments that the job sets itself.
check_serving() {
    local folder=$1 argument name
    shift
    [[ -f $folder/clsgen.json ]] || die "$folder is not an exported model: clsgen export --checkpoint RUN --output $folder --fold true"
    grep -q '^  "folded": {' "$folder/clsgen.json" || die "$folder is not folded, so vLLM would give no class logits: clsgen export --checkpoint $folder --output DIR --fold true"
    for argument in "$@"; do
        case ${argument%%=*} in
            --tensor-parallel-size | -tp | --pipeline-parallel-size | -pp | --nnodes | -n | --node-rank | -r | --master-addr | --master-port | --headless | --shutdown-timeout)
                die "$argument: the job sets it, from its nodes and their GPUs (--nodes, --gres)"
                ;;
            --host | --port) die "$argument: the job sets it; set PORT instead" ;;
        esac
    done
    for name in PORT READY_TIMEOUT HEALTH_EVERY MAX_RESTARTS; do
        [[ ${!name:-1} =~ ^[1-9][0-9]*$ ]] || die "$name is '${!name}', expected a whole number above 0"
    done
    [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || die "a server is not an array: submit it without --array"
    [[ ${SLURM_NTASKS:-$nodes} == "$nodes" ]] || die "$SLURM_NTASKS tasks on $nodes nodes, expected one a node: submit with --ntasks-per-node=1"
}

healthy() { curl --noproxy '*' -fsS --max-time 20 "$url/health" >/dev/null 2>&1; }

# Write the URL once the server answers, and end the step if it takes too long to, or no longer does. Such an end is a crash.
watch_health() {
    local started=$SECONDS failures=0
    until healthy; do
        ((SECONDS - started < ${READY_TIMEOUT:-3600})) || { unhealthy "not ready within READY_TIMEOUT (${READY_TIMEOUT:-3600} s)"; return; }
        sleep 2
    done
    echo "$url" >"$OUTPUT/url"
    log "ready after $((SECONDS - started)) s: $url"
    while sleep "${HEALTH_EVERY:-30}"; do
        if healthy; then failures=0; else failures=$((failures + 1)); fi
        ((failures < 3)) || { unhealthy "$url/health has failed three times"; return; }
    done
}

unhealthy() {
    log "$1: stopping"
    echo "1 $1" >"$CLSGEN_LOGS/unhealthy"
    scancel "$SLURM_JOB_ID.0" || true
}

# serve FOLDER ARGUMENTS...: run the job. ARGUMENTS are passed to vllm serve.
serve() {
    (($#)) || die "usage: sbatch slurm/serve_70b.sh FOLDER [ARGUMENTS FOR vllm serve]; FOLDER is of: clsgen export --fold true"
    local folder nodes gpus=${SLURM_GPUS_ON_NODE:-8} url ended='' watcher
    folder=$(realpath -m "$1")
    open_job slurm/serve_70b.sh "$folder:$folder"
    nodes=${SLURM_JOB_NUM_NODES:-$(wc -l <<<"$CLSGEN_NODES")}
    shift
    check_serving "$folder" "$@"
    url=http://$MASTER_ADDR:${PORT:-8000}
    local -a command=("${VLLM:-vllm}" serve "$folder" "$@" --host 0.0.0.0 --port "${PORT:-8000}" --shutdown-timeout 20
        --tensor-parallel-size "$gpus" --pipeline-parallel-size "$nodes"
        --nnodes "$nodes" --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT")
    # shellcheck disable=SC2016  # expands in the task
    command=(bash -c '[ "$SLURM_NODEID" = 0 ] || set -- "$@" --headless; exec "$@" --node-rank "$SLURM_NODEID"' serve "${command[@]}")
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        run mkdir -p "$CLSGEN_LOGS"
        step rank --wait=60 -- "${command[@]}"
        echo "# Ready once this succeeds:"
        run curl --noproxy '*' -fsS "$url/health"
        return
    fi
    make_logs
    watch_health &
    watcher=$!
    step rank --wait=60 -- "${command[@]}"
    kill "$watcher" 2>/dev/null || true
    rm -f "$OUTPUT/url"
    if [[ -n $stop_signal && -z $no_requeue_reason ]]; then
        log "stopped by $stop_signal"
        exit 0
    fi
    [[ ! -s $CLSGEN_LOGS/unhealthy ]] || ended=$(<"$CLSGEN_LOGS/unhealthy")
    finish
}

serve "$@"
