#!/usr/bin/env bash
# The suite and the fuzzers against a package that is built with sanitizers, in an environment of its own:
#
#     tools/sanitize.sh address                AddressSanitizer, UndefinedBehaviorSanitizer, LeakSanitizer (GCC)
#     tools/sanitize.sh thread                 ThreadSanitizer (GCC)
#     tools/sanitize.sh fuzz-table [SECONDS]   tools/fuzz_table.c by libFuzzer, with address and undefined too (Clang)
#     tools/sanitize.sh fuzz-python [SECONDS]  tools/fuzz_python.py by atheris, with the same
#     tools/sanitize.sh fuzz [SECONDS]         both, of one build
#
# The first two first show that they notice a planted fault. Exit status 1: something was found. They leave out
# statistics, the command line and the reference implementation, which make no other calls; huge arrays, forks and load, which
# take too long; limits and measures of memory, since a sanitizer needs memory itself; guard pages, which are the CPU's own
# check. Of the frameworks, address runs PyTorch and JAX, whose tests call torch/_tensors.pyx, torch/_openmp.pyx and jax/_xla.pyx.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:?"expected address, thread, fuzz-table, fuzz-python or fuzz"}
seconds=${2:-180}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 OPENBLAS_NUM_THREADS=1 # OpenBLAS is not built for sanitizers, nor under test

say() { printf '\n-- %s\n' "$*"; }
runtime() { "${CC:-gcc}" -print-file-name="$1"; }

# install FLAGS PACKAGE...: this package with these flags; from a copy, so that no object of another build is taken
install() {
  say "a package built with $1"
  git ls-files -z | xargs -0 cp --parents -t "$work"
  printf '[build_ext]\nparallel = 2\n' >"$work/setup.cfg"
  python3 -m venv "$work/env"
  "$work/env/bin/pip" install --quiet 'setuptools>=77' cython numpy ml_dtypes "${@:2}"
  (cd "$work" && CFLAGS="$1 -fno-omit-frame-pointer" LDFLAGS="$1" env/bin/pip install --quiet --no-build-isolation --no-deps .)
}

# A command in the copy, with the environment of the array `options`; its sanitizers write to files.
sanitized() { (cd "$work" && env "${options[@]}" PATH="$work/env/bin:$PATH" "$@"); }
reports() { cat "$work"/report.* 2>/dev/null || true; }

sees() { # sees WORDS PROGRAM: the sanitizer says these words about a Python program with a planted fault
  sanitized python -P -c "$2" >"$work/report.control" 2>&1 || true
  if ! reports | grep -qE "$1"; then
    reports
    say "a planted fault was not seen: $1"
    exit 1
  fi
  rm -f "$work"/report.*
  say "a planted fault is seen: $1"
}

nothing_found() { # nothing_found WORDS: no report has these words
  if reports | grep -qE "$1"; then
    reports
    say "found: see above"
    exit 1
  fi
  say "nothing found by $what"
}

suite() { # suite WORDS OPTION...: the tests pass, and no report has these words
  local status=0
  sanitized pytest -q --capture=sys "${@:2}" 2>&1 | tee "$work/report.suite" || status=$?
  nothing_found "$1"
  return $status
}

table='import sys, ctypes; sys.path.append("tests/helpers"); import numpy as np, kernel_tables as tables; table = tables.tables()["baseline"]
mask = tables.new_mask(table, 0.3); room = np.empty(1 << 20, np.uint8); address = room.ctypes.data;'

check_addresses() {
  install -fsanitize=address,undefined pytest hypothesis torch==2.13.0 jax
  # PYTHONMALLOC: each object is an allocation of its own. handle_segv: a test of the suite dies of a planted one.
  # fast_unwind_on_malloc: CPython is built without frame pointers, so that the callers of an allocation would be lost.
  local common="log_path=$work/report:handle_segv=0:allocator_may_return_null=1"
  local base=(
    "LD_PRELOAD=$(runtime libasan.so):$(runtime libubsan.so):$(runtime libstdc++.so)"
    PYTHONMALLOC=malloc UBSAN_OPTIONS=print_stacktrace=1
  )
  options=("${base[@]}" "ASAN_OPTIONS=$common:detect_leaks=0")
  sees "heap-buffer-overflow" "$table table.bools(address, room.size + 1, mask, 0)"
  sees "misaligned address" "$table odd = tables.Mask.from_buffer(bytearray(99), 1); table.bits(address, 9, odd, 0)"
  sees "torch/_tensors.*\.so" "import torch, cdropout.torch
x = torch.ones(1 << 16); x.untyped_storage().resize_(4096); cdropout.torch.dropout(x)"

  local words="runtime error:|ERROR: AddressSanitizer"
  say "the suite: AddressSanitizer, UndefinedBehaviorSanitizer"
  local left_out=()
  for name in core/test_{randomness,correlation,reference,guard_pages,stress,signals,memory}.py cli capi documents project \
    {torch,jax,keras,tensorflow,dask,thinc}_adapter; do
    left_out+=("--ignore=tests/$name")
  done
  suite "$words" -m '' "${left_out[@]}"

  say "the tests of PyTorch and JAX: the same"
  local frameworks=()
  for name in "$work"/tests/torch_adapter/test_*.py "$work"/tests/jax_adapter/test_*.py; do
    [[ $name = *examples.py ]] || frameworks+=("$name")
  done
  suite "$words" "${frameworks[@]}" -k "not machine_code" # which compiles without the sanitizers

  say "the tests of all objects and errors: LeakSanitizer"
  options=("${base[@]}" "ASAN_OPTIONS=$common:detect_leaks=1:fast_unwind_on_malloc=0:malloc_context_size=16")
  # (what the garbage collector tracks can always be reached: of that, tests/core/test_stress.py counts the references)
  sees "cdropout/_core/generator.*\.so" "import ctypes, cdropout
for n in range(100): ctypes.pythonapi.Py_IncRef(ctypes.py_object(cdropout.Generator(n)))"
  # CPython and NumPy lose some constants at their end; a leak is ours if a module of this package is among its callers
  suite "cdropout/_core/.*\.so|[0-9] (failed|error)" tests/arrays/test_errors.py tests/arrays/test_bad_input.py tests/core/test_generator.py \
    tests/core/test_mask.py tests/arrays/test_modules.py -k "not forked_child" || true # the exit status tells of CPython's constants too
  grep -qE '[0-9]+ passed' "$work/report.suite"
}

check_threads() {
  install -fsanitize=thread pytest hypothesis
  # setarch -R: GCC's runtime knows addresses that are not random only. die_after_fork: the suite forks, with threads.
  options=(setarch -R env "LD_PRELOAD=$(runtime libtsan.so)" "TSAN_OPTIONS=log_path=$work/report:die_after_fork=0")
  sees "data race" "$table import threading
def work():
    for _ in range(100): table.bools(address, room.size, mask, 0)
threads = [threading.Thread(target=work) for _ in range(2)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]"
  say "the tests with threads: ThreadSanitizer"
  suite "WARNING: ThreadSanitizer" -m '' tests/core/test_executor.py tests/core/test_generator.py \
    tests/core/test_kernels.py::test_threads_write_adjacent_ranges tests/core/test_stress.py \
    -k "not memory and not leave_the_process and not sharing_begins and not cannot_be_started" # which count threads
}

fuzz() {
  command -v clang >/dev/null || { apt-get -qq update && apt-get -qq install -y clang; } >/dev/null
  export CC=clang
  install -fsanitize=address,undefined,fuzzer-no-link atheris
  local headers site folder version kept=$PWD/build/fuzz # inputs that reach something new, and any that fails
  local ask="from sysconfig import *; print(*map(get_path, ['include', 'purelib']), *get_config_vars('LIBDIR', 'LDVERSION'))"
  read -r headers site folder version <<<"$("$work/env/bin/python" -c "$ask")"
  mkdir -p "$kept/table" "$kept/python"
  local limits=(-max_total_time="$seconds" -print_final_stats=1 -artifact_prefix="$kept/" -len_control=0)
  local strict=(UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1)
  if [ "$what" != fuzz-python ]; then
    say "the table of the kernels: libFuzzer, $seconds s"
    clang -g -O1 -Wall -Wextra -fsanitize=address,undefined,fuzzer -I "$headers" -I cdropout/include tools/fuzz_table.c \
      -o "$work/fuzz_table" -L "$folder" -Wl,-rpath,"$folder" -lpython"$version"
    options=("PYTHONPATH=$site" "${strict[@]}")
    sanitized ./fuzz_table "${limits[@]}" -max_len=64 "$kept/table"
  fi
  if [ "$what" != fuzz-table ]; then
    say "the Python entry points: atheris, $seconds s"
    options=("LD_PRELOAD=$site/asan_with_fuzzer.so" PYTHONPATH=tests PYTHONMALLOC=malloc "${strict[@]}")
    sanitized python -P tools/fuzz_python.py "${limits[@]}" -max_len=256 "$kept/python"
  fi
}

case $what in
  address) check_addresses ;;
  thread) check_threads ;;
  fuzz | fuzz-table | fuzz-python) fuzz ;;
  *) echo "expected address, thread, fuzz-table, fuzz-python or fuzz, but got $what" >&2 && exit 2 ;;
esac
