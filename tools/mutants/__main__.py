"""Run the quick tests on each mutant of catalog.py, and record the outcomes in log.tsv.

    python tools/mutants [--only PATTERN ...] [--jobs N] [--nearest] [--again] [--report]

A mutant is killed if the package cannot be imported, or if a quick test fails, crashes or exceeds a
time limit. The tests in NEAREST run first, then all quick tests unless --nearest is given. A mutant
in the log is run again only with --again, if the mutant or its function has changed, or if it
survived the nearest tests and --nearest is not given. The environment must contain the requirements
for building and testing, and no cdropout except an editable install. The exit status is 1 if less
than 95 % of the mutants in the log are killed.
"""

import argparse
import collections
import concurrent.futures
import fnmatch
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import anchors
from catalog import EXPLAINED, MUTANTS

ROOT = Path(__file__).parents[2]
LOG = Path(__file__).with_name("log.tsv")
KERNELS = (
    "stream.pxd",
    "bits.pxd",
    "select.pxd",
    "view.pxd",
    "rows.pxd",
    "tiles.pxd",
    "kernels.pyx",
    "simd.h",
    "half.h",
    "softmax.h",
)
ISAS = ("baseline", "avx2", "avx512")
NEAREST = {  # for each file, the tests that are most likely to fail, in the order of execution
    **dict.fromkeys(
        KERNELS,
        "core/stream core/kernels core/view core/select core/bias_dropout_add core/mask "
        "capi/kernel_arguments core/guard_pages core/streaming_stores",
    ),
    "softmax.h": "core/softmax",
    "_attention.pyx": "torch_adapter/attention",
    "torch/attention.py": "torch_adapter/attention",
    "dispatch.pyx": "core/dispatch",
    "numpy_arrays.pyx": (
        "core/numpy_arrays arrays/errors core/engine arrays/result_types core/dropout "
        "arrays/misbehaving_objects"
    ),
    "mask.pyx": (
        "core/mask arrays/mask_argument core/generator core/mask_operators arrays/errors "
        "arrays/functional"
    ),
    "arguments.pyx": "core/arguments core/generator core/mask arrays/errors",
    "generator.pyx": (
        "core/generator arrays/errors core/numpy_random arrays/misbehaving_objects core/signals"
    ),
    "dropout.pyx": (
        "arrays/mask_argument core/dropout arrays/errors core/numpy_arrays "
        "arrays/misbehaving_objects core/arguments arrays/modules core/signals"
    ),
    "executor.pyx": "core/executor arrays/errors core/signals core/processes",
    "engine.pyx": "core/engine core/mask core/executor core/dropout arrays/functional",
    "dtypes.pyx": (
        "core/dtypes arrays/errors core/select torch_adapter/functional jax_adapter/functional"
    ),
    "bias_dropout_add.pyx": (
        "core/bias_dropout_add arrays/errors arrays/misbehaving_objects core/signals"
    ),
    "_tensors.pyx": (
        "torch_adapter/functional torch_adapter/modes torch_adapter/autograd "
        "torch_adapter/alpha_dropout torch_adapter/errors torch_adapter/dropped_elements"
    ),
    "_draw.pyx": (
        "torch_adapter/operators torch_adapter/functional torch_adapter/fx "
        "torch_adapter/mask_argument torch_adapter/checkpoint torch_adapter/alpha_dropout "
        "torch_adapter/autograd torch_adapter/errors"
    ),
    "_openmp.pyx": "torch_adapter/openmp torch_adapter/functional",
    "_xla.pyx": "jax_adapter/xla jax_adapter/custom_call",
    "functional.py": "arrays/mask_argument arrays/functional arrays/misbehaving_objects",
    "modules.py": "arrays/modules",
    "torch/functional.py": (
        "torch_adapter/functional torch_adapter/mask_argument torch_adapter/fx "
        "torch_adapter/errors torch_adapter/alpha_dropout"
    ),
    "torch/autograd.py": (
        "torch_adapter/functional torch_adapter/mask_argument torch_adapter/dropped_elements "
        "torch_adapter/errors torch_adapter/autograd torch_adapter/fx torch_adapter/modes"
    ),
    "torch/modules.py": "torch_adapter/modules torch_adapter/fx",
    "torch/operators.py": (
        "torch_adapter/mask_argument torch_adapter/autograd torch_adapter/operators "
        "torch_adapter/checkpoint"
    ),
    "torch/checkpoint.py": "torch_adapter/checkpoint",
    "torch/overrides.py": (
        "torch_adapter/overrides torch_adapter/checkpoint torch_adapter/modes torch_adapter/errors"
    ),
    "torch/fx.py": "torch_adapter/fx torch_adapter/mask_argument",
    "jax/functional.py": (
        "jax_adapter/traced_p jax_adapter/functional jax_adapter/mask_argument jax_adapter/errors"
    ),
    "jax/partitioning.py": "jax_adapter/sharding",
    "flax/functional.py": "jax_adapter/flax",
    "flax/linen.py": "jax_adapter/flax",
    "flax/nnx.py": "jax_adapter/flax",
    "dask.py": "dask_adapter/*",
    "keras.py": "keras_adapter/keras",
    "thinc.py": "thinc_adapter/thinc",
}
SOURCE_TESTS = (  # not run on mutants, because they test the text of the sources
    "project/mutants project/imports documents/documents project/typing capi/layout"
)
BUILD = """
import runpy, setuptools, sys
modules, *options = sys.argv[1:]
original_setup = setuptools.setup
def setup(ext_modules, **rest):
    if modules:
        ext_modules = [e for e in ext_modules if e.name.rpartition(".")[2] in modules.split()]
    for extension in ext_modules:
        level = "-O1" if "_kernels_" in extension.name else "-O0"
        extension.extra_compile_args.append(level)  # for faster compilation
    sys.argv = ["setup.py", "-q", "build_ext", *options]
    original_setup(ext_modules=ext_modules, **rest)
setuptools.setup = setup
runpy.run_path("setup.py", run_name="__main__")
"""


def path_of_tests(name):
    """Return the path of a test file that NEAREST lists as folder/name."""
    folder, name = name.split("/")
    return f"tests/{folder}/test_{name}.py"


class Mutant:
    """An entry of the catalog."""

    def __init__(self, file, function, name, pattern, replacement, number=None):
        self.file, self.function = file, function
        self.path = ROOT / "cdropout" / file
        self.change = pattern, replacement, number
        self.id = f"{file}:{function}:{name}".replace(" ", "-")
        self.syntax = anchors.C if file.endswith(".h") else anchors.PYTHON
        self.isa = None
        self.module = Path(file).stem
        if file.startswith("_core/") and Path(file).name in KERNELS:
            self.isa = name.partition("@")[2] or "avx512"
            self.module = f"_kernels_{self.isa}"

    def mutated(self, text):
        return anchors.replace(text, self.function, *self.change, syntax=self.syntax)

    def digest(self, text):
        return anchors.digest(text, self.function, self.change, self.syntax)

    def nearest(self):
        names = NEAREST.get(self.file) or NEAREST[Path(self.file).name]
        found = [path for name in names.split() for path in ROOT.glob(path_of_tests(name))]
        return [str(path.relative_to(ROOT)) for path in found]


def mutants():
    """Return all mutants of the catalog."""
    return [
        Mutant(file, function, *entry)
        for file, functions in MUTANTS.items()
        for function, entries in functions.items()
        for entry in entries
    ]


# ---- copies of the tree -------------------------------------------------------------------------


def run(command, folder, limit=None, **variables):
    """Return (exit status, output) of a command. The status is None if the command times out."""
    process = subprocess.Popen(
        command, cwd=folder, env={**os.environ, **variables}, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace",
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return None, output
    return process.returncode, output


def build(tree, modules, *options):
    """Build these modules, or all if `modules` is empty. Return None, or the output on failure."""
    status, output = run([sys.executable, "-c", BUILD, modules, *options], tree)
    return output if status else None


def synchronize(base):
    """Update `base`, a copy of the checkout, and build its changed modules; exit on failure."""
    list_files = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(list_files, cwd=ROOT, capture_output=True, check=True, text=True)
    names = {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    for name in names:
        copy, content = base / name, (ROOT / name).read_bytes()
        if not copy.exists() or copy.read_bytes() != content:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
    for folder in ("cdropout", "tests"):
        for path in (base / folder).rglob("*.p*"):  # .py, .pyx, .pxd, .pyi
            if path.suffix != ".pyc" and str(path.relative_to(base)) not in names:
                path.unlink()
    if failure := build(base, "", "--inplace"):
        raise SystemExit(failure)


class Tree:
    """A copy of base that contains one mutant at a time."""

    def __init__(self, base, folder):
        self.base, self.folder = base, folder
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder, ignore=shutil.ignore_patterns("build", "__pycache__"))

    def insert(self, mutant):
        """Insert the mutant and build its module. Return the output on failure, otherwise None."""
        path = self.folder / "cdropout" / mutant.file
        path.write_text(mutant.mutated(path.read_text()))
        if path.suffix == ".py":
            return None
        shutil.rmtree(self.folder / "build", ignore_errors=True)
        options = ("--force", "--build-lib", "build/lib", "--build-temp", "build/temp")
        failure = build(self.folder, mutant.module, *options)
        built = self.folder / "build" / "lib" / "cdropout"
        if not failure:
            shutil.copytree(built, self.folder / "cdropout", dirs_exist_ok=True)
        return failure

    def restore(self, mutant):
        for path in ("cdropout" / Path(mutant.file), *self.compiled(mutant.module)):
            shutil.copy2(self.base / path, self.folder / path)

    def compiled(self, module):
        found = (self.base / "cdropout").rglob(f"{module}.*")
        return [p.relative_to(self.base) for p in found if p.suffix in (".so", ".pyd")]

    def failure(self, tests, isa, limit=None):
        """Run quick tests. Return the first failure, or None if all pass."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
        command += [f"--ignore={path_of_tests(name)}" for name in SOURCE_TESTS.split()]
        variables = {"PYTHONPATH": str(self.folder)}
        if isa:  # only the kernels for this instruction set contain the mutant
            command += ["-k", " and ".join(f"not {other}" for other in ISAS if other != isa)]
            variables["CDROPOUT_ISA"] = isa
        status, output = run([*command, *tests], self.folder, limit, **variables)
        if status == 5 or (status == 0 and " passed" not in output):
            return "all of these tests were skipped: install the framework that they need"
        if status == 0:
            return None
        if status is None:
            return "a time limit"
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
        crashed = re.search(r'File "\S*?(tests/\S+)", line \d+ in (test\w+)', output)
        if failed:
            return failed[1].split("[")[0].replace("tests/", "")
        if crashed:
            return f"a crash in {crashed[1].replace('tests/', '')}::{crashed[2]}"
        return f"exit status {status}: {output.strip().splitlines()[-1:]}"


# ---- the log ------------------------------------------------------------------------------------


def read_log():
    """Return {id of a mutant: [digest, outcome, first failure, seconds]}."""
    lines = LOG.read_text().splitlines() if LOG.exists() else []
    return {line.split("\t")[0]: line.split("\t")[1:] for line in lines[1:]}


def write_log(log):
    known = {mutant.id for mutant in mutants()}
    lines = ["\t".join([id, *log[id]]) for id in sorted(log) if id in known]
    LOG.write_text("\n".join(["mutant\thash\toutcome\tby\tseconds", *lines]) + "\n")


def report(log):
    """Print the mutants that ran and were not killed, and counts; return the fraction killed."""
    counts = collections.defaultdict(collections.Counter)
    for mutant in mutants():
        digest, outcome = log.get(mutant.id, ("", "not run"))[:2]
        counts[mutant.file].update(["mutants", outcome.partition(" ")[0]])
        changed = digest not in ("", mutant.digest(mutant.path.read_text()))
        counts[mutant.file].update(["changed since"] if changed else [])
        if outcome not in ("killed", "not run"):
            reason = EXPLAINED.get(mutant.id)
            counts[mutant.file].update(["explained"] if reason else [])
            print(f"{outcome}: {mutant.id}{': ' * bool(reason)}{reason or ''}")
    total = sum(counts.values(), collections.Counter())
    columns = "mutants", "run", "killed", "survived", "explained", "changed since"
    print(f"{'':24}" + "".join(f"{column:>14}" for column in columns))
    for file, count in (*counts.items(), ("total", total)):
        count["run"] = count["mutants"] - count["not"]
        print(f"{file:24}" + "".join(f"{count[column]:14}" for column in columns))
    return total["killed"] / total["run"] if total["run"] else 1


# ---- the run ------------------------------------------------------------------------------------


class Runner:
    """A pool of trees, in which several mutants are tested at the same time."""

    def __init__(self, work, jobs, nearest_only):
        self.nearest_only, self.limits, self.trees = nearest_only, {}, queue.Queue()
        synchronize(work / "base")
        for job in range(jobs):
            self.trees.put(Tree(work / "base", work / f"tree{job}"))
            self.check_package(work / f"tree{job}")

    def check_package(self, folder):
        """Raise SystemExit unless processes started by tests import the package of this folder."""
        command = [sys.executable, "-P", "-c", "import cdropout; print(cdropout.__file__)"]
        _, output = run(command, folder / "tests", PYTHONPATH=str(folder))
        if Path(output.strip()).parent != folder / "cdropout":
            raise SystemExit(f"the tests in {folder} import another package: {output}")

    def limit(self, tree, tests, isa):
        """Return the time limit in seconds. Raise SystemExit if the tests fail without a mutant."""
        if (isa, *tests) not in self.limits:
            started = time.monotonic()
            if failure := tree.failure(tests, isa):
                raise SystemExit(f"the tests fail without a mutant ({isa or 'default'}): {failure}")
            self.limits[isa, *tests] = 60 + 5 * (time.monotonic() - started)
        return self.limits[isa, *tests]

    def outcome(self, mutant):
        """Run the tests on a mutant. Return (outcome, first failure, seconds)."""
        tree, started = self.trees.get(), time.monotonic()
        try:
            rounds = [mutant.nearest()] if self.nearest_only else [mutant.nearest(), ["tests"]]
            limit = self.limit(tree, rounds[0], mutant.isa)
            if failure := tree.insert(mutant):
                print(failure, file=sys.stderr)
                return "does not compile", "", 0
            for tests in rounds:
                if tests is not rounds[0]:
                    tree.restore(mutant)
                    limit = self.limit(tree, tests, mutant.isa)
                    tree.insert(mutant)
                if by := tree.failure(tests, mutant.isa, limit):
                    return "killed", by, time.monotonic() - started
            survived = "survived the nearest" if self.nearest_only else "survived"
            return survived, "", time.monotonic() - started
        finally:
            tree.restore(mutant)
            self.trees.put(tree)


def select_mutants(options, log):
    """Return the mutants to run, with their digests."""
    found = []
    for mutant in mutants():
        digest = mutant.digest(mutant.path.read_text())
        done = log.get(mutant.id, ("", ""))
        known = done[0] == digest and (done[1] != "survived the nearest" or options.nearest)
        named = any(fnmatch.fnmatch(mutant.id, f"*{pattern}*") for pattern in options.only)
        if named and (options.again or not known):
            found.append((mutant, digest))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        metavar="PATTERN",
        help="match anywhere in file:function:name of a mutant: torch/ _core/s*:open",
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of mutants to run at once")
    parser.add_argument("--nearest", action="store_true", help="run the nearest tests only")
    parser.add_argument("--again", action="store_true", help="include mutants that are in the log")
    parser.add_argument("--report", action="store_true", help="only print a summary of the log")
    options = parser.parse_args()
    for pattern in options.only:
        if not fnmatch.filter((mutant.id for mutant in mutants()), f"*{pattern}*"):
            parser.error(f"no mutant matches {pattern}")
    log = read_log()
    todo = [] if options.report else select_mutants(options, log)
    if todo:
        runner = Runner(ROOT / "build" / "mutants", options.jobs, options.nearest)
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            started = {
                pool.submit(runner.outcome, mutant): (mutant, digest) for mutant, digest in todo
            }
            try:
                for done in concurrent.futures.as_completed(started):
                    mutant, digest = started[done]
                    outcome, by, seconds = done.result()
                    print(f"{mutant.id}: {outcome} {by} ({seconds:.0f} s)", flush=True)
                    log[mutant.id] = [digest, outcome, by, f"{seconds:.0f}"]
                    write_log(log)
            finally:
                pool.shutdown(cancel_futures=True)
    raise SystemExit(report(log) < 0.95)


if __name__ == "__main__":
    main()
