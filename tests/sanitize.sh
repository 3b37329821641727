#!/usr/bin/env bash
# The suite and the fuzzers against a package that is built with sanitizers, in an environment of its own:
#   tests/sanitize.sh address                AddressSanitizer, UndefinedBehaviorSanitizer, LeakSanitizer (GCC)
#   tests/sanitize.sh thread                 ThreadSanitizer (GCC)
#   tests/sanitize.sh fuzz-table [SECONDS]   tests/fuzz_table.c by libFuzzer, address and undefined too (Clang)
#   tests/sanitize.sh fuzz-python [SECONDS]  tests/fuzz_python.py by atheris, address too (Clang)
# Each but the last first shows that it sees a fault that is planted. Exit status 1: something was found.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:?address, thread, fuzz-table or fuzz-python}
seconds=${2:-180}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 OPENBLAS_NUM_THREADS=1 # OpenBLAS is not built for these sanitizers, nor under test

say() { printf '\n-- %s\n' "$*"; }
runtime() { ${CC:-gcc} -print-file-name="$1"; }

install() { # install FLAGS: the package with these flags; elsewhere, so that no object of another build is taken
  say "a package built with $1"
  git ls-files -z | xargs -0 cp --parents -t "$work"
  python3 -m venv "$work/env"
  "$work/env/bin/pip" install --quiet 'setuptools>=77' cython numpy pytest hypothesis ml_dtypes "${@:2}"
  (cd "$work" && CFLAGS="$1 -fno-omit-frame-pointer" LDFLAGS="$1" env/bin/pip install --quiet --no-build-isolation --no-deps .)
}

sanitized() { # a command in the copy; its reports go to files
  (cd "$work" && env $options PATH="$work/env/bin:$PATH" "$@")
}

reports() { cat "$work"/report.* 2>/dev/null || true; }

sees() { # sees WORDS PROGRAM: the sanitizer reports these words of a Python program with a planted fault
  sanitized python -P -c "$2" >"$work/report.control" 2>&1 || true
  if ! reports | grep -qE "$1"; then
    reports
    say "the planted fault was not seen: $1"
    exit 1
  fi
  rm -f "$work"/report.*
  say "a planted fault is seen: $1"
}

TABLE='import sys, ctypes; sys.path.insert(0, "tests"); import numpy as np, tables; table = tables.tables()["baseline"]
mask = tables.new_mask(table, 0.3); room = np.empty(1 << 20, np.uint8); address = room.ctypes.data;'

nothing_found() { # nothing_found WORDS: no report with these words
  if reports | grep -qE "$1"; then
    reports
    say "found: see above"
    exit 1
  fi
  say "nothing found by $what"
}

case $what in
address)
  install -fsanitize=address,undefined
  # PYTHONMALLOC: each object is an allocation of its own. handle_segv: a test of the suite dies of a planted one.
  # fast_unwind_on_malloc: CPython is built without frame pointers, so that the callers of an allocation would be lost.
  preload="LD_PRELOAD=$(runtime libasan.so):$(runtime libubsan.so):$(runtime libstdc++.so) PYTHONMALLOC=malloc"
  common="log_path=$work/report:handle_segv=0:allocator_may_return_null=1"
  undefined="UBSAN_OPTIONS=print_stacktrace=1"
  options="$preload $undefined ASAN_OPTIONS=$common:detect_leaks=0"
  sees "heap-buffer-overflow" "$TABLE table.bools(address, room.size + 1, mask, 0)"
  sees "misaligned address" "$TABLE odd = tables.Mask.from_buffer(bytearray(99), 1); table.bits(address, 9, odd, 0)"
  leak="$preload ASAN_OPTIONS=$common:detect_leaks=1:fast_unwind_on_malloc=0:malloc_context_size=16"
  options=$leak sees "cdropout.*masks" "import ctypes, cdropout
ctypes.pythonapi.Py_IncRef(ctypes.py_object(cdropout.Mask(3, 0.5)))"

  say "the suite: AddressSanitizer, UndefinedBehaviorSanitizer"
  # Left out: statistics and the command line, which bring no other calls; the limits and measures of memory, which the
  # sanitizer's own memory passes; guard pages, which are the CPU's own check.
  sanitized pytest -q --capture=sys --ignore=tests/test_correlation.py --ignore=tests/test_cli.py --ignore=tests/test_compare.py \
    --ignore=tests/test_growth.py --ignore=tests/test_contestants.py --ignore=tests/test_guard_pages.py --ignore=tests/test_examples.py \
    --ignore=tests/test_documents.py --deselect=tests/test_threads.py::test_nothing_leaks \
    --deselect=tests/test_build.py::test_nothing_is_allocated_but_the_output 2>&1 | tee "$work/report.suite"
  nothing_found "runtime error:|AddressSanitizer"

  say "the tests of all objects and errors: LeakSanitizer"
  # CPython and NumPy lose some constants at their end; a leak is ours if a module of this package is among its callers
  options=$leak sanitized pytest -q --capture=sys tests/test_errors.py tests/test_fused.py tests/test_generators.py tests/test_masks.py \
    tests/test_modules.py || true
  nothing_found "cdropout/core/.*\.so"
  ;;

thread)
  install -fsanitize=thread
  # setarch -R: GCC's runtime knows addresses that are not random only. die_after_fork: the suite forks, with threads.
  options="setarch -R env LD_PRELOAD=$(runtime libtsan.so) TSAN_OPTIONS=log_path=$work/report:die_after_fork=0"
  sees "data race" "$TABLE import threading
threads = [threading.Thread(target=table.bools, args=(address, room.size, mask, 0)) for _ in range(2)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]"
  say "the tests with threads: ThreadSanitizer"
  # Left out: what runs in one thread; and a limit of memory, which the sanitizer's own passes.
  sanitized pytest -q --capture=sys tests/test_threads.py tests/test_share.py tests/test_generators.py \
    tests/test_kernels.py::test_threads_share_arrays --deselect=tests/test_threads.py::test_too_little_memory_changes_nothing
  nothing_found "data race|ThreadSanitizer"
  ;;

*)
  say "no such command: $what"
  exit 2
  ;;
esac
