"""The suite proves itself: plants the faults of faults.py one at a time, and lists those it misses.

    python tests/mutate.py [--work FOLDER] [FILE ...]

FILE is a part of a name in faults.py, as `stream` or `core/`; without one, all are planted. A fault
is killed if the package does not import with it, or a test fails, crashes or hangs; without a
fault the same tests have to pass. FOLDER keeps the build for the next time. The environment
has to hold what builds and tests the package. Exit status 1: under 95 % are killed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from faults import FAULTS

ROOT = Path(__file__).parents[1]
KERNELS = ("stream", "bits", "elements", "planes", "kernels", "simd")  # what each set is built from
FIRST = {  # the tests that are the likeliest to notice; all the others come after them
    **dict.fromkeys(
        KERNELS, ["planes", "past_cache", "halves", "fused", "corners", "kernels", "guard_pages"]
    ),
    "arrays": ["errors", "exporters", "layouts", "threads"],
    "pieces": ["layouts", "masks", "threads"],
    "fused": ["fused"],
    "strided": ["layouts", "masks"],
    "masks": ["masks", "errors"],
    "generators": ["generators"],
    "calls": ["errors", "functional"],
    "threads": ["threads"],
    "functional": ["variants"],
    "modules": ["modules", "variants"],
}
# Left out: statistics and the command line, which take long; what needs other packages; and, where
# one instruction set alone is there, what tests the choice between them.
SLOW = (
    "correlation randomness cli stream compare growth contestants examples documents house".split()
)
LONG = "load faults".split()  # last, and not for the kernels
OTHERS = "capi_examples torch jax flax keras framework dask thinc".split()
CHOICE = "not baseline_is_always and not environment_chooses and not one_byte and not cpu"
HANGS = 400  # seconds


class Copy:
    """A copy of the tree, and the package as it is installed from it."""

    def __init__(self, work):
        self.tree, self.site, self.good = work / "tree", work / "site", work / "good"
        self.passed = set()
        if not self.good.exists():
            files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, check=True)
            for name in files.stdout.decode().split():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.tree / name)
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            pip += ["--no-build-isolation", "--target", str(self.site), str(self.tree)]
            subprocess.run(pip, check=True)
            self.build_only_what_is_named()
            shutil.copytree(self.site / "cdropout", self.good)
        shutil.copytree(ROOT / "tests", self.tree / "tests", dirs_exist_ok=True)

    def build_only_what_is_named(self):
        """Without optimization, too: that is quicker, and no result depends on it."""
        setup = self.tree / "setup.py"
        chosen = (
            'NAMED = __import__("os").environ["NAMED"].split()\nsources = sources & {*NAMED}\n'
            "INSTRUCTION_SETS = {i: f for i, f in INSTRUCTION_SETS.items() if i in NAMED}\n"
        )
        text = setup.read_text().replace("extensions = [", chosen + "extensions = [")
        setup.write_text(text.replace('"-O3"', '"-O1"'))

    def restore(self, isa=None):
        """Put the good package back, with one instruction set if one is named."""
        shutil.rmtree(self.site / "cdropout")
        shutil.copytree(self.good, self.site / "cdropout")
        for path in (self.site / "cdropout/core").glob("_kernels_*"):
            if isa and f"_kernels_{isa}." not in path.name:
                path.unlink()

    def build(self, named):
        """Build some modules from the tree, and install them over the others."""
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--force"]
        command += ["--build-lib", str(self.site)]
        environment = {**os.environ, "NAMED": named}
        subprocess.run(command, cwd=self.tree, env=environment, check=True, capture_output=True)

    def plant(self, file, right, wrong, named):
        """Install the package with one fault."""
        path = self.tree / "cdropout" / file
        text = path.read_text()
        if text.count(right) != 1:
            raise SystemExit(f"{file}: expected one, but found {text.count(right)}: {right}")
        path.write_text(text.replace(right, wrong))
        try:
            if file.endswith(".py"):
                shutil.copy(path, self.site / "cdropout" / file)
            else:
                self.build(named)
        finally:
            path.write_text(text)

    def first_failure(self, tests):
        """Run the tests up to the first that fails; return what noticed the fault, or None."""
        environment = {**os.environ, "PYTHONPATH": str(self.site)}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
        command += ["-k", CHOICE, *tests]
        try:
            done = subprocess.run(
                command, cwd=self.tree / "tests", env=environment, capture_output=True,
                text=True, timeout=HANGS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "a test that hangs"
        if done.returncode == 0:
            return None
        if done.returncode in (4, 5):  # pytest's own mistakes: nothing was tested
            raise SystemExit(done.stdout + done.stderr)
        noticed = [
            line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))
        ]
        return noticed[0] if noticed else f"exit status {done.returncode}"

    def without_a_fault(self, isa, tests):
        """Show that these tests pass on the good package, so that it was the fault that failed."""
        if (isa, *tests) not in self.passed:
            self.restore(isa)
            if failure := self.first_failure(tests):
                raise SystemExit(f"without a fault, {isa or 'all'}: {failure}")
            self.passed.add((isa, *tests))

    def notice(self, file, right, wrong, where=None):
        """Return what notices this fault, or None: the likeliest tests, then all the others."""
        name = Path(file).stem
        isa = (where or "avx512") if name in KERNELS else None
        self.restore(isa)
        self.plant(file, right, wrong, isa or where or name)
        for tests in tests_for(name):
            if noticed := self.first_failure(tests):
                self.without_a_fault(isa, tests)
                return noticed
        return None


def tests_for(name):
    """Return the files of tests in two parts, the likeliest and the others."""
    left_out = tuple(f"test_{part}" for part in SLOW + OTHERS)
    every = {path.name for path in ROOT.glob("tests/test_*.py")}
    every = {name for name in every if not name.startswith(left_out)}
    last = [f"test_{part}.py" for part in LONG]
    first = [f"test_{part}.py" for part in FIRST[name]]
    others = sorted(every - {*first, *last})
    return first, others if name in KERNELS else others + [
        test for test in last if test not in first
    ]


def row(file, fault, noticed, seconds):
    """One line of the table: the fault, what killed it, and how long that took."""
    right, wrong, *where = (part.strip() or "nothing" for part in fault)
    change = " ".join(f"{right} -> {wrong} {' '.join(where)}".split())
    return f"| {file} | {change} | {noticed or 'MISSED'} | {seconds:.0f} s |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, help="a folder that keeps the build")
    parser.add_argument("files", nargs="*", help="parts of names in faults.py")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp())
    copy, missed, planted = Copy(work.absolute()), 0, 0
    for file, faults in FAULTS.items():
        if options.files and not any(part in file for part in options.files):
            continue
        for fault in faults:
            started = time.monotonic()
            noticed = copy.notice(file, *fault)
            planted, missed = planted + 1, missed + (noticed is None)
            print(row(file, fault, noticed, time.monotonic() - started), flush=True)
    print(f"{planted - missed} of {planted} faults were killed")
    if not options.work:
        shutil.rmtree(work)
    raise SystemExit(missed > 0.05 * planted)


if __name__ == "__main__":
    main()
