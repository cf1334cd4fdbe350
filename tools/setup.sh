#!/usr/bin/env bash
# Makes the virtual environment that the Makefile's commands use: tools/setup.sh FOLDER EXTRAS
# A torch that is already there (a vendor's build, say) is used as it is and proven unchanged; otherwise torch 2.13.0
# is installed. Run again it does nothing unless pyproject.toml is newer.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 extras=$2
stamp="$venv/.ready-${extras//,/-}"
[ -e "$stamp" ] && [ ! pyproject.toml -nt "$stamp" ] && exit 0

python=""
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
  if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
  echo "error: no Python 3.11 or newer (with its venv module) found. Install one, or name it: make PYTHON=/path/to/python" >&2
  exit 1
fi

torch_version() { "$1" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || true; }

if [ ! -x "$venv/bin/python" ]; then
  if [ -n "$(torch_version "$python")" ]; then
    echo "setup: using the torch $(torch_version "$python") of $python"
    "$python" -m venv --system-site-packages "$venv"
  else
    "$python" -m venv "$venv"
  fi
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check -q "$@" 2> >(grep -v 'is ignored: it is neither a file nor a directory' >&2); }
if [ -z "$(torch_version "$venv/bin/python")" ]; then
  echo "setup: installing torch 2.13.0"
  pip install torch==2.13.0
fi
before=$(torch_version "$venv/bin/python")
echo "setup: installing hasten[$extras] beside torch $before"
printf 'torch==%s\n' "$before" > "$venv/keep-torch.txt"
pip install --constraint "$venv/keep-torch.txt" -e ".[$extras]"
after=$(torch_version "$venv/bin/python")
if [ "$before" != "$after" ]; then
  echo "error: torch changed from $before to $after. Remove '$venv' and report this." >&2
  exit 1
fi
touch "$stamp"
