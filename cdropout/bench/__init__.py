"""The benchmark, `cdropout bench`: implementations are checked, timed and compared."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from cdropout.bench import check, peers, progress, table, timing

INTERRUPTED = 128 + 2  # exit code of a program that the signal SIGINT has ended


def load(name, dtype, options):
    """Return (implementation, None), or (None, error) if it fails or returns wrong results."""
    factory = {**peers.OURS, **peers.ADAPTERS, **peers.PEERS}[name]
    try:
        implementation = factory(options.threads, dtype)
        error = check.find_error(implementation, dtype, options.p)
    except Exception as problem:  # an exception of any type must not end the benchmark
        implementation, error = None, f"{type(problem).__name__}: {problem}"
    return (None, " ".join(error.split())) if error else (implementation, None)


def load_all(names, dtype, results, options, begin):
    """Return the implementations that pass their checks.

    Add versions, errors, and CPU usages above the requested number of threads to `results`.
    """
    loaded = []
    for name in names:
        begin(f"check of {name} with {dtype}")
        implementation, error = load(name, dtype, options)
        if error:
            errors = [results["left_out"].get(name), f"{dtype}: {error}"]
            results["left_out"][name] = "; ".join(filter(None, errors))
            continue
        loaded.append(implementation)
        results["implementations"][name] = implementation.version
        cpus = check.cpus_used(implementation, dtype, options.p)
        if cpus > options.threads + 0.2:
            results["too_many_cpus"][name] = cpus
    return loaded


def measure_all(results, options):
    """Add the measurements of all sizes to `results`; each size is added when it is complete."""
    names = [*peers.OURS, *peers.adapters_of(options.peers), *options.peers]
    steps = len(options.dtype) * (len(names) + len(options.sizes) * len(timing.MODES))
    with progress.show_progress(steps) as begin:
        for dtype in options.dtype:
            loaded = load_all(names, dtype, results, options, begin)
            for size in options.sizes:
                measured = list(timing.measure_size(size, dtype, loaded, options, begin))
                results["measurements"] += [each._asdict() for each in measured]


def measure(options):
    """Return the results of a run, as a dict that can be written as JSON.

    After Ctrl-C, the results contain the sizes that are complete.
    """
    every_library = options.peer in ([], ["all"])
    results = {
        "environment": timing.environment(options),
        "implementations": {},
        "not_installed": peers.not_installed() if every_library else {},
        "left_out": {},
        "too_many_cpus": {},
        "interrupted": False,
        "measurements": [],
    }
    cpu_usage = timing.start_cpu_usage()
    try:
        measure_all(results, options)
    except KeyboardInterrupt:
        results["interrupted"] = True
    results["environment"]["cpu_usage"] = cpu_usage()
    return results


@contextlib.contextmanager
def path_in_errors(path):
    """Add the path to each OSError without a path, such as the error for a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def run(options: Any) -> int:
    """Run the benchmark, print the report, and write the files for --json and --plot.

    Parameters
    ----------
    options : argparse.Namespace
        p, dtype and sizes (lists), threads, cold, seconds, peer (the names that were given), peers
        (the names in PEERS to time), json and plot (a path or None), as checked by
        `cdropout.__main__`.

    Returns
    -------
    int
        The exit code: 130 after Ctrl-C, 1 if cdropout itself failed its check, otherwise 0.
    """
    results = measure(options)
    measurements = [timing.Measurement(**each) for each in results["measurements"]]
    print(*table.report(results, measurements, shutil.get_terminal_size().columns), sep="\n")
    if options.json:
        with path_in_errors(options.json):
            Path(options.json).write_text(json.dumps(results, indent=1) + "\n")
    if options.plot and measurements:
        with path_in_errors(options.plot):
            table.plot(results["environment"], measurements, options.plot)
    if results["interrupted"]:
        return INTERRUPTED
    return int(any(name in results["left_out"] for name in peers.OURS))
