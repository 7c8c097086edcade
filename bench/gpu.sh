#!/usr/bin/env bash
# The learner measured on one GPU: at most 8 minutes, no vLLM, no Ray, no weights. `bash bench/gpu.sh --tiny` runs
# anywhere. PYTHON names the interpreter (default: .venv/bin/python, else python3); bench/gpu.py says the rest.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-}
if [ -z "$python" ]; then
  if [ -x .venv/bin/python ]; then python=.venv/bin/python; else python=python3; fi
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false

missing() {  # names, of those given, that cannot be imported
  "$python" -c 'import sys; from importlib.util import find_spec; print(*(n for n in sys.argv[1:] if not find_spec(n)))' "$@"
}

needed=$(missing torch transformers numpy tokenizers PIL)
if [ -n "$needed" ]; then
  echo "bench/gpu.sh: $python lacks $needed; name a Python that has them: PYTHON=/path/to/python bash bench/gpu.sh" >&2
  exit 2
fi
small=$(missing xxhash pydantic yaml peft accelerate)
if [ -n "$small" ]; then
  extra=$(mktemp -d)
  export PYTHONPATH="$PYTHONPATH:$extra"
  for name in $small; do  # peft and accelerate ask for torch, which is there
    [ "$name" = yaml ] && name=pyyaml
    case $name in peft | accelerate) deps=--no-deps ;; *) deps= ;; esac
    timeout 30 "$python" -m pip install -q --retries 0 --timeout 5 --disable-pip-version-check $deps --target "$extra" "$name" \
      >/dev/null 2>&1 || echo "bench/gpu.sh: $name is not there and cannot be installed; what needs it is left out" >&2
  done
fi
exec timeout -k 5 $((475 - SECONDS)) "$python" -W ignore -m bench.gpu --limit $((450 - SECONDS)) "$@"
