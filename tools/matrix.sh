#!/usr/bin/env bash
# Runs the tests beside another set of versions: tools/matrix.sh SET [PYTEST ARGUMENTS]
# SET is a file of tools/sets without its ending. Each set has a virtual environment of its own, .venv-SET. Without
# arguments the whole suite runs but for what needs a GPU; `--part` runs what touches trl, datasets and transformers.
set -euo pipefail
cd "$(dirname "$0")/.."
set=${1:-}
pins="tools/sets/$set.txt"
if [ -z "$set" ] || [ ! -e "$pins" ]; then
  echo "error: there is no set '$set'. Known are: $(cd tools/sets && ls *.txt | sed 's/\.txt$//' | tr '\n' ' ')" >&2
  exit 2
fi
shift
venv="${VENV:-.venv-$set}"
tools/setup.sh "$venv" dev --constraint "$pins"
"$venv/bin/python" - <<'PROGRAM'
import importlib.metadata as m

names = ("torch", "transformers", "trl", "datasets", "peft", "accelerate", "huggingface_hub", "tokenizers")
print("versions:", ", ".join(f"{name} {m.version(name)}" for name in names))
PROGRAM
if [ "${1:-}" = --part ]; then
  shift
  set -- -m "not slow and not gpu" tests/compat tests/training tests/loading "$@"
elif [ $# -eq 0 ]; then
  set -- -m "not gpu" -n auto --maxprocesses 2
fi
CUDA_VISIBLE_DEVICES='' "$venv/bin/python" -m pytest "$@"
