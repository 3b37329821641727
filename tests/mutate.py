"""The suite proves itself: plants the faults of faults.py one at a time, and lists those it misses.

    python tests/mutate.py [--work FOLDER] [FILE ...]

FILE is a part of a name in faults.py, as `stream` or `core/`; without one, all are planted. A fault
is killed if the package does not import with it, or a test fails, crashes or hangs. Before that,
the tests have to pass without a fault. FOLDER keeps the build for the next time. The environment
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
    **dict.fromkeys(KERNELS, ["planes", "past_cache", "guard_pages", "halves", "fused", "kernels"]),
    "arrays": ["errors", "exporters", "layouts", "threads"],
    "signals": ["faults"],
    "fused": ["fused"],
    "strided": ["layouts", "masks"],
    "masks": ["masks", "errors"],
    "generators": ["generators"],
    "calls": ["errors", "functional"],
    "threads": ["share", "threads"],
    "functional": ["variants"],
    "modules": ["modules"],
}
# Left out: statistics and the command line, which take long; what needs other packages; and, where
# one instruction set alone is there, what tests the choice between them.
SLOW = "correlation randomness cli stream compare growth contestants examples readme".split()
LONG = "load faults".split()  # last, and not for the kernels
OTHERS = "capi_examples torch jax flax keras framework dask thinc".split()
CHOICE = "not baseline_is_always and not environment_chooses and not one_byte and not cpu"
HANGS = 400  # seconds


class Copy:
    """A copy of the tree, and the package as it is installed from it."""

    def __init__(self, work):
        self.tree, self.site, self.good = work / "tree", work / "site", work / "good"
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
            'NAMED = os.environ["NAMED"].split()\nMODULES = [m for m in MODULES if m in NAMED]\n'
            "INSTRUCTION_SETS = {i: f for i, f in INSTRUCTION_SETS.items() if i in NAMED}\n\n\n"
        )
        text = setup.read_text().replace("def compiled(", chosen + "def compiled(")
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
            raise SystemExit(f"{file}: there have to be one, but are {text.count(right)}: {right}")
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


def tests_for(name):
    """Return the files of tests, the likeliest first."""
    left_out = tuple(f"test_{part}" for part in SLOW + OTHERS)
    every = {path.name for path in ROOT.glob("tests/test_*.py")}
    every = {name for name in every if not name.startswith(left_out)}
    last = [f"test_{part}.py" for part in LONG]
    first = [f"test_{part}.py" for part in FIRST[name]]
    tests = first + sorted(every - {*first, *last})
    return tests if name in KERNELS else list(dict.fromkeys(tests + last))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, help="a folder that keeps the build")
    parser.add_argument("files", nargs="*", help="parts of names in faults.py")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp())
    copy, checked, missed, planted = Copy(work.absolute()), set(), [], 0
    for file, faults in FAULTS.items():
        if options.files and not any(part in file for part in options.files):
            continue
        name = Path(file).stem
        for right, wrong, *where in faults:
            isa = (where or ["avx512"])[0] if name in KERNELS else None
            copy.restore(isa)
            if isa not in checked and (failure := copy.first_failure(tests_for(name))):
                raise SystemExit(f"without a fault, {isa}: {failure}")
            checked.add(isa)
            started = time.monotonic()
            copy.plant(file, right, wrong, isa or name)
            noticed = copy.first_failure(tests_for(name))
            planted += 1
            missed += [] if noticed else [(file, right, wrong)]
            seconds = f"{time.monotonic() - started:.0f} s"
            print(f"{file}: {right!r} -> {wrong!r}: {noticed or 'MISSED'} ({seconds})", flush=True)
    print(f"{planted - len(missed)} of {planted} faults were killed")
    if not options.work:
        shutil.rmtree(work)
    raise SystemExit(len(missed) > 0.05 * planted)


if __name__ == "__main__":
    main()
