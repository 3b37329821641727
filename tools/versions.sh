#!/usr/bin/env bash
# tools/versions.sh NAME==VERSION...: test the adapter for each of these versions of a framework, for example torch==2.9.1.
# Each version is installed into a new virtual environment, which is deleted afterwards. PYTHON is the interpreter, TESTS are
# additional arguments for pytest. PyTorch from PyPI needs 7 GB; set PIP_INDEX_URL=https://download.pytorch.org/whl/cpu and
# PIP_EXTRA_INDEX_URL=https://pypi.org/simple for PyTorch without CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 OPENBLAS_NUM_THREADS=1

declare -A tests=( # the folder with the tests of each framework
  [torch]=tests/torch_adapter
)

test_version() {
  local requirement=$1 folder=${tests[${1%%==*}]} work status=0
  work=$(mktemp -d)
  "${PYTHON:-python3}" -m venv "$work"
  "$work/bin/pip" install --quiet "$requirement" ".[test]" || status=$?
  if [ $status = 0 ]; then
    PATH="$work/bin:$PATH" pytest -q $folder ${TESTS:-} || status=$?
  fi
  rm -rf "$work"
  return $status
}

[ $# -gt 0 ] || { sed -n 2,5p "$0" && exit 2; }
failed=()
for requirement; do
  [ -n "${tests[${requirement%%==*}]:-}" ] || { echo "no tests for $requirement: expected one of ${!tests[*]}" && exit 2; }
  printf '\n== %s\n' "$requirement"
  start=$(date +%s)
  test_version "$requirement" || failed+=("$requirement")
  printf -- '-- %s: %s s\n' "$requirement" $(($(date +%s) - start))
done
[ ${#failed[@]} = 0 ] || { printf 'failed: %s\n' "${failed[*]}" && exit 1; }
