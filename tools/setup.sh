#!/usr/bin/env bash
# Installs hasten in a virtual environment:
#   tools/setup.sh FOLDER EXTRAS [--from WHEEL_OR_FOLDER] [--constraint FILE]...
# The Makefile's commands, the version sets (tools/matrix.sh) and the container (docker/Dockerfile) all use it.
#
# A torch that is already there (a vendor's build, say) is used as it is: it and all that is built on it are written down
# before (tools/keep.py), named exactly to pip, and proven unchanged and importable afterwards. Otherwise torch 2.13.0 is
# installed. Without --from this folder is installed as it stands (editable). Run again it does nothing unless
# pyproject.toml or a constraint file is newer.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 extras=$2
shift 2
source=(-e ".[$extras]") given=()
while [ $# -gt 0 ]; do
  case $1 in
    --from) source=("$2[$extras]") ;;
    --constraint) given+=(--constraint "$2") ;;
    *) echo "error: unknown argument '$1'. Known are --from and --constraint." >&2; exit 2 ;;
  esac
  shift 2
done
stamp="$venv/.ready-${extras//,/-}"
if [ -e "$stamp" ]; then
  fresh=yes
  for file in pyproject.toml "${given[@]}"; do
    if [ "$file" -nt "$stamp" ]; then fresh=no; fi
  done
  if [ $fresh = yes ]; then exit 0; fi
fi

# NVIDIA's PyTorch images set this: some 300 exact pins of all that they hold. As they stand they keep today's transformers
# away (`safetensors==0.5.3`), make pip take an ancient one in silence, or keep a build tool away (`packaging==23.2`).
# What must stay is named below instead; of the rest pip renews what is too old, in the new folder, not in the image.
if [ -n "${PIP_CONSTRAINT:-}" ]; then
  echo "setup: PIP_CONSTRAINT=$PIP_CONSTRAINT is put aside for this installation; what must stay is in $venv/keep.txt"
  unset PIP_CONSTRAINT
fi

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
  options=()
  theirs=$(torch_version "$python")
  if [ -n "$theirs" ]; then
    echo "setup: using the torch $theirs of $python"
    options+=(--system-site-packages)
    # Debian and Ubuntu leave ensurepip out of Python; pip itself is then seen through the system's packages.
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then options+=(--without-pip); fi
  fi
  "$python" -m venv "${options[@]}" "$venv"
  if [ -n "$theirs" ] && [ "$(torch_version "$venv/bin/python")" != "$theirs" ]; then
    # $python belongs to a virtual environment itself, whose packages a new one does not see without being told.
    theirs_at=$("$python" -c 'import importlib.metadata as m; print(m.distribution("torch").locate_file(""))')
    echo "$theirs_at" > "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vendor.pth"
  fi
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check -q "$@" 2> >(grep -v 'is ignored: it is neither a file nor a directory' >&2); }
if [ -z "$(torch_version "$venv/bin/python")" ]; then
  echo "setup: installing torch 2.13.0"
  pip install torch==2.13.0
fi
# Written once, before anything of ours is there: later runs compare with the same state.
if [ ! -e "$venv/kept.json" ]; then "$venv/bin/python" tools/keep.py record "$venv/kept.json"; fi
"$venv/bin/python" tools/keep.py constraints "$venv/kept.json" > "$venv/keep.txt"
echo "setup: installing hasten[$extras] beside torch $(torch_version "$venv/bin/python")"
pip install --constraint "$venv/keep.txt" "${given[@]}" "${source[@]}"
if ! "$venv/bin/python" tools/keep.py check "$venv/kept.json"; then
  echo "error: the installation touched what had to stay. Remove '$venv' and report this." >&2
  exit 1
fi
"$venv/bin/python" -c 'import hasten; print("setup: hasten", hasten.__version__, "is ready")'
touch "$stamp"
