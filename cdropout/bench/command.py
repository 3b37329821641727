"""The run of `cdropout bench`: contestants are checked and raced, and what came of it is shown."""

from typing import Any

from cdropout.bench import chart, compare, contestant, kernels, machine, peers, race, report, runs


def admit(name, dtype, options):
    """Return (contestant, None), or (None, why it is left out), having made and checked it."""
    race.show_progress(f"checking {name} with {dtype}")
    maker = {**peers.OURS, **peers.ADAPTERS, **peers.PEERS}[name]
    try:
        admitted = maker(options.threads, dtype)
        reason = contestant.wrong(admitted, dtype, options.p)
    except Exception as error:  # of any kind that a library has: the others can still be raced
        admitted, reason = None, f"{type(error).__name__}: {error}"
    return (None, " ".join(reason.split())) if reason else (admitted, None)


def gather(dtype, results, options):
    """The contestants for one type; `results` is told of them, and of those left out."""
    admitted = []
    for name in [*peers.OURS, *peers.adapters_beside(options.peers), *options.peers]:
        each, reason = admit(name, dtype, options)
        if reason:
            said = results["left_out"].get(name)
            results["left_out"][name] = "; ".join(filter(None, [said, f"{dtype}: {reason}"]))
            continue
        admitted.append(each)
        results["contestants"][name] = each.version
        used = contestant.cpus_used(each, dtype, options.p)
        if used > options.threads + 0.2:
            results["not_held_to_threads"][name] = used
    return admitted


def measure(options):
    """All that is raced in one run, as a dict of what the JSON file holds."""
    results = {
        "environment": machine.environment(options),
        "contestants": {},
        "left_out": {},
        "not_held_to_threads": {},
        "cells": [],
    }
    share = machine.cpu_share()
    for dtype in options.dtype:
        admitted = gather(dtype, results, options)
        for size in [] if options.kernels else options.sizes:
            cells = race.race_at(size, dtype, admitted, options)
            results["cells"] += [cell._asdict() for cell in cells]
    results["kernels"] = kernels.race_kernels(options.seconds, options.cold)
    results["kernel_runs"] = {name: [number] for name, number, _ in results["kernels"]}
    results["environment"]["cpu_share"] = share()
    race.show_progress("")
    return results


def run(options: Any) -> int:
    """Run the benchmark.

    Parameters
    ----------
    options : argparse.Namespace
        p, dtype and sizes (lists), threads, cold, seconds, runs, peers (names), kernels (those
        alone), json and plot (a path or None) and compare (what `compare.load` returned, or None),
        as `cdropout.__main__` has checked them.

    Returns
    -------
    int
        The exit code: 1 if this package failed its check, or became slower.
    """
    results = measure(options) if options.runs == 1 else runs.measure_apart(options)
    cells = [race.Cell(**cell) for cell in results["cells"]]
    print(*report.heading(results), "", sep="\n")
    if cells:
        print(*report.tables(cells), "", sep="\n")
    print(*kernels.kernel_lines(results), sep="\n")
    if options.json:
        report.write_json(results, options.json)
    if options.plot:
        with report.naming(options.plot):
            chart.plot(results["environment"], cells, options.plot)
    failed = int(any(name in results["left_out"] for name in peers.OURS))
    if options.compare is None:
        return failed
    lines, slower = compare.report(options.compare, results)
    print("", *lines, sep="\n")
    return failed or slower
