#!/usr/bin/env bash
# Run the tests or the fuzzers on a build with sanitizers, in a new environment:
#
#     tools/sanitize.sh address                run the tests with Address-, UndefinedBehavior- and LeakSanitizer (GCC)
#     tools/sanitize.sh thread                 run the tests of threads with ThreadSanitizer (GCC)
#     tools/sanitize.sh fuzz-table [SECONDS]   run tools/fuzz_table.c with libFuzzer and the first two sanitizers (Clang)
#     tools/sanitize.sh fuzz-python [SECONDS]  run tools/fuzz_python.py with atheris and the same sanitizers
#     tools/sanitize.sh fuzz [SECONDS]         run both fuzzers with one build
#
# The exit status is not 0 if a test fails, or if a sanitizer or a fuzzer reports an error. `address` and `thread` first
# check that the sanitizer detects an error that is made on purpose. `address` omits some tests, among them:
# - statistics, the command line and the reference implementation, because other tests call the same compiled functions;
# - huge arrays and stress tests, because they take too long;
# - forks, because a child of a process with threads may wait for a lock of AddressSanitizer's allocator forever;
# - limits and measurements of memory, because sanitizers need memory themselves;
# - guard pages, because AddressSanitizer detects the same errors and more.
# `address` includes the tests of PyTorch and JAX, which call torch/_{draw,openmp,tensors}.pyx and jax/_xla.pyx.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:?"expected address, thread, fuzz-table, fuzz-python or fuzz"}
seconds=${2:-180}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 OPENBLAS_NUM_THREADS=1 # no threads in OpenBLAS, which is not instrumented

print_step() { printf '\n-- %s\n' "$*"; }
runtime_library() { "${CC:-gcc}" -print-file-name="$1"; }

# install FLAGS PACKAGE...: build a copy of this package with FLAGS, without objects of other builds, and install it and PACKAGE.
install() {
  print_step "build with $1"
  git ls-files -z | xargs -0 cp --parents -t "$work"
  printf '[build_ext]\nparallel = 2\n' >"$work/setup.cfg"
  python3 -m venv "$work/env"
  "$work/env/bin/pip" install --quiet 'setuptools>=77' cython numpy ml_dtypes "${@:2}"
  (cd "$work" && CFLAGS="$1 -fno-omit-frame-pointer" LDFLAGS="$1" env/bin/pip install --quiet --no-build-isolation --no-deps .)
}

# Run a command in the copy, with the environment of the array `options`. The sanitizers write their reports to files.
run_sanitized() { (cd "$work" && env "${options[@]}" PATH="$work/env/bin:$PATH" "$@"); }
reports() { cat "$work"/report.* 2>/dev/null || true; }

# check_detection PATTERN PROGRAM: fail unless a report on a Python program with a known error matches PATTERN.
check_detection() {
  run_sanitized python -P -c "$2" >"$work/report.program" 2>&1 || true
  if ! reports | grep -qE "$1"; then
    reports
    print_step "a known error was not detected: $1"
    exit 1
  fi
  rm -f "$work"/report.*
  print_step "a known error is detected: $1"
}

# check_reports PATTERN: fail if a report matches PATTERN.
check_reports() {
  if reports | grep -qE "$1"; then
    reports
    print_step "errors: see above"
    exit 1
  fi
  print_step "no errors"
}

# run_tests PATTERN OPTION...: fail if a test fails or a report matches PATTERN.
run_tests() {
  local status=0
  run_sanitized pytest -q --capture=sys "${@:2}" 2>&1 | tee "$work/report.tests" || status=$?
  check_reports "$1"
  return $status
}

# The programs that call the table of kernels begin with these lines. The checkout is last in sys.path, because its cdropout is
# not built.
call_table='import sys; sys.path.append("."); import numpy as np; from tests.helpers import kernel_tables
table = kernel_tables.tables()["baseline"]; mask = kernel_tables.new_mask(table, 0.3)
array = np.empty(1 << 20, np.uint8); address = array.ctypes.data;'

check_addresses() {
  install -fsanitize=address,undefined pytest hypothesis torch==2.13.0 jax
  # PYTHONMALLOC: each object is a separate allocation. handle_segv=0: one test ends a process with a segmentation fault.
  # fast_unwind_on_malloc=0: the fast unwinder needs frame pointers, which CPython lacks.
  local common="log_path=$work/report:handle_segv=0:allocator_may_return_null=1"
  local base=(
    "LD_PRELOAD=$(runtime_library libasan.so):$(runtime_library libubsan.so):$(runtime_library libstdc++.so)"
    PYTHONMALLOC=malloc UBSAN_OPTIONS=print_stacktrace=1
  )
  options=("${base[@]}" "ASAN_OPTIONS=$common:detect_leaks=0")
  check_detection "heap-buffer-overflow" "$call_table table.bools(address, array.size + 1, mask, 0)"
  check_detection "misaligned address" "$call_table misaligned = kernel_tables.Mask.from_buffer(bytearray(99), 1)
table.bits(address, 9, misaligned, 0)"
  check_detection "torch/_tensors.*\.so" "import torch, cdropout.torch
x = torch.ones(1 << 16); x.untyped_storage().resize_(4096); cdropout.torch.dropout(x)"

  local errors="runtime error:|ERROR: AddressSanitizer"
  print_step "core tests with AddressSanitizer and UndefinedBehaviorSanitizer"
  local ignored=()
  for name in core/test_{randomness,correlation,reference,stream,dispatch,guard_pages,stress,signals}.py \
    core/test_{huge_arrays,memory,process_state}.py cli capi documents project {torch,jax,keras,tensorflow,dask,thinc}_adapter; do
    ignored+=("--ignore=tests/$name")
  done
  ignored+=(--deselect=tests/core/test_processes.py::test_a_{spawned,subinterpreter})
  run_tests "$errors" -m '' "${ignored[@]}" -k "not fork"

  print_step "tests of PyTorch and JAX with the same"
  local frameworks=()
  for name in "$work"/tests/torch_adapter/test_*.py "$work"/tests/jax_adapter/test_*.py; do
    [[ $name = *examples.py ]] || frameworks+=("$name")
  done
  run_tests "$errors" "${frameworks[@]}" -k "not machine_code and not fork" # Inductor compiles without sanitizers

  print_step "tests of objects and errors with LeakSanitizer"
  options=("${base[@]}" "ASAN_OPTIONS=$common:detect_leaks=1:fast_unwind_on_malloc=0:malloc_context_size=16")
  # LeakSanitizer cannot find leaked objects that the garbage collector tracks; tests/core/test_memory.py counts their references.
  check_detection "cdropout/_core/generator.*\.so" "import ctypes, cdropout
for n in range(100): ctypes.pythonapi.Py_IncRef(ctypes.py_object(cdropout.Generator(n)))"
  # CPython and NumPy leak constants at exit. Only a leak with a module of this package among its callers is an error. pytest's
  # exit status is ignored, because the other leaks also change it.
  run_tests "cdropout/_core/.*\.so|[0-9] (failed|error)" tests/arrays/test_errors.py tests/core/test_generator.py \
    tests/core/test_mask.py tests/arrays/test_modules.py -k "not forked_child" || true
  grep -qE '[0-9]+ passed' "$work/report.tests"
}

check_threads() {
  install -fsanitize=thread pytest hypothesis
  # setarch -R: GCC's runtime does not support random addresses. die_after_fork=0: some tests fork a process with threads.
  options=(setarch -R env "LD_PRELOAD=$(runtime_library libtsan.so)" "TSAN_OPTIONS=log_path=$work/report:die_after_fork=0")
  check_detection "data race" "$call_table import threading
def draw():
    for _ in range(100): table.bools(address, array.size, mask, 0)
threads = [threading.Thread(target=draw) for _ in range(2)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]"
  print_step "tests with threads, with ThreadSanitizer"
  # -k omits the tests that count threads
  run_tests "WARNING: ThreadSanitizer" -m '' tests/core/test_executor.py tests/core/test_generator.py \
    tests/core/test_processes.py --deselect=tests/core/test_processes.py::test_a_{spawned,subinterpreter} \
    tests/core/test_kernels.py::test_threads_can_write_adjacent_ranges tests/core/test_stress.py \
    -k "not start_threads_once and not cannot_be_started"
}

fuzz() {
  command -v clang >/dev/null || { apt-get -qq update && apt-get -qq install -y clang; } >/dev/null
  export CC=clang
  install -fsanitize=address,undefined,fuzzer-no-link atheris
  local headers site folder version corpus=$PWD/build/fuzz # inputs that reach new code, and failing inputs
  local query="from sysconfig import *; print(*map(get_path, ['include', 'purelib']), *get_config_vars('LIBDIR', 'LDVERSION'))"
  read -r headers site folder version <<<"$("$work/env/bin/python" -c "$query")"
  mkdir -p "$corpus/table" "$corpus/python"
  local limits=(-max_total_time="$seconds" -print_final_stats=1 -artifact_prefix="$corpus/" -len_control=0)
  local strict=(UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1)
  if [ "$mode" != fuzz-python ]; then
    print_step "table of kernels with libFuzzer, $seconds s"
    clang -g -O1 -Wall -Wextra -fsanitize=address,undefined,fuzzer -I "$headers" -I cdropout/include tools/fuzz_table.c \
      -o "$work/fuzz_table" -L "$folder" -Wl,-rpath,"$folder" -lpython"$version"
    options=("PYTHONPATH=$site" "${strict[@]}")
    run_sanitized ./fuzz_table "${limits[@]}" -max_len=64 "$corpus/table"
  fi
  if [ "$mode" != fuzz-table ]; then
    print_step "Python functions with atheris, $seconds s"
    options=("LD_PRELOAD=$site/asan_with_fuzzer.so" PYTHONMALLOC=malloc "${strict[@]}")
    run_sanitized python -P tools/fuzz_python.py "${limits[@]}" -max_len=256 "$corpus/python"
  fi
}

case $mode in
  address) check_addresses ;;
  thread) check_threads ;;
  fuzz | fuzz-table | fuzz-python) fuzz ;;
  *) echo "expected address, thread, fuzz-table, fuzz-python or fuzz, but got $mode" >&2 && exit 2 ;;
esac
