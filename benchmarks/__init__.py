"""The benchmark suite: speed-ups, and the contribution of each change. Run from a clone, not installed.

    python -m benchmarks            measure (__main__.py); python -m benchmarks.report: tables and plots of the results
    suites.py                       the registry: workloads, and the implementations that are measured on each
    implementation.py  workload.py  both as plain data
    steps.py  training.py  networks.py    the measured code: PyTorch's loop and fastgan's
    correctness.py                  comparison of results with float64; an incorrect implementation is not timed
    worker.py                       a process for each implementation
    run.py                          interleaved rounds of all implementations, within a number of minutes
    results.py  report.py  plots.py    the CSV, and tables and plots of it

    python -m benchmarks.counters   kernels, bytes and memory of a step, counted without a GPU
    test_workloads.py               passes, networks and the step under pytest-benchmark
    python -m benchmarks.compare    the same step in two clones of this repository, in turns
    python -m benchmarks.lines      the speed-up by each line of fastgan in a plain training loop
    python -m benchmarks.presets    the pictures of README.md
"""
