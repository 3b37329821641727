#!/usr/bin/env bash
# Test the adapters with certain versions of their frameworks, each row of the table in a new environment.
#
#     tools/versions.sh                       all rows of the table
#     tools/versions.sh lowest flax           these rows
#     tools/versions.sh torch==2.9.1          the tests in tests/torch_adapter with this version of PyTorch
#     WHEEL=dist/x.whl tools/versions.sh ...  with this wheel instead of a new one
#
# The name `lowest` stands for the lowest versions that pyproject.toml accepts. JOBS rows (default: 2) run at the same time.
set -euo pipefail
cd "$(dirname "$0")/.."

# name | tests | requirements; "EXTRA>=" stands for the lowest versions that this extra accepts, "numpy>=" for that of NumPy.
# Rows are separate where the lowest versions cannot be installed together: Flax needs a newer JAX, and TensorFlow an older ml_dtypes.
table='
lowest          | arrays/test_bit_identity.py dask_adapter jax_adapter keras_adapter thinc_adapter | numpy>= dask>= jax>= keras>= thinc>= spacy<3.6 absl-py flatbuffers
flax            | jax_adapter/test_flax.py             | flax>= jax==0.6.0
tensorflow      | tensorflow_adapter                   | tensorflow>= keras>=
numpy-1.25      | core arrays                          | numpy>=
jax-0.6         | jax_adapter                          | flax==0.11.2 jax==0.6.2
jax-0.7         | jax_adapter                          | flax==0.12.0 jax==0.7.2
jax-0.8         | jax_adapter                          | flax jax==0.8.3
keras-3.5       | keras_adapter                        | keras==3.5.0 jax==0.5.0
dask-2025.5     | dask_adapter                         | dask[array]==2025.5.0
thinc-8.2       | thinc_adapter                        | thinc==8.2.5 spacy<3.8 numpy<2
thinc-8.3.0     | thinc_adapter                        | thinc==8.3.0
'

# requirements WORD...: print the words, but replace "EXTRA>=" with its requirements in pyproject.toml, and their >= with ==.
requirements() {
  python3 - "$@" <<'PYTHON'
import re, sys, tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = {"numpy": project["dependencies"], **project["optional-dependencies"]}
for word in sys.argv[1:]:
    lines = extras[word[:-2]] if word.endswith(">=") else [word]
    print(*(re.sub(r">=([\d.]+).*", r"==\1", line).replace("tensorflow=", "tensorflow-cpu=")
            for line in lines if not line.startswith("cdropout[")))
PYTHON
}

# run_row NAME TESTS REQUIREMENT...: install the wheel with the requirements and run the tests.
run_row() {
  local env=$work/$1 tests=() test options=()
  for test in $2; do tests+=("tests/$test"); done
  [ "$2" != tensorflow_adapter ] || options=(-m 'slow or not slow')
  python3 -m venv "$env" || return
  # not the extra [test], which needs a newer ml_dtypes than TensorFlow 2.16 accepts
  "$env/bin/pip" install --quiet --only-binary :all: "$WHEEL" pytest hypothesis ml_dtypes setuptools \
    $(requirements "${@:3}") || return
  PATH=$env/bin:$PATH OPENBLAS_NUM_THREADS=1 pytest -q "${options[@]}" "${tests[@]}"
}

main() {
  local name tests words status=0
  for name; do
    [[ $name != *==* ]] || table+="$name | ${name%%==*}_adapter | $name"$'\n'
    [[ $table == *$'\n'"$name "* ]] || { echo "versions.sh: the table has no row $name" >&2 && exit 2; }
  done
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  [ -n "${WHEEL:-}" ] || { pip wheel --quiet --no-deps --wheel-dir "$work" . && WHEEL=$(echo "$work"/cdropout-*.whl); }
  while IFS='|' read -r name tests words; do
    name=${name// /}
    [ -n "$name" ] && { [ $# = 0 ] || [[ " $* " == *" $name "* ]]; } || continue
    while [ "$(jobs -rp | wc -l)" -ge "${JOBS:-2}" ]; do wait -n || true; done
    (run_row "$name" "$(echo $tests)" $words >"$work/$name.log" 2>&1 && echo passed || echo FAILED) >"$work/$name.result" &
  done <<<"$table"
  wait
  while IFS='|' read -r name tests words; do
    name=${name// /}
    [ -e "$work/$name.result" ] || continue
    [ "$(cat "$work/$name.result")" = passed ] || { status=1 && tail -60 "$work/$name.log"; }
    printf '%-14s %s  %s  (%s)\n' "$name" "$(cat "$work/$name.result")" "$(tail -1 "$work/$name.log")" "$(requirements $words | xargs)"
  done <<<"$table"
  return $status
}

main "$@"
