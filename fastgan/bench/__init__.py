"""The benchmark suite: what is fast, by how much, and what earned it.

    suites.py       the registry: which workloads there are, and who takes part in each
    contender.py    a way of doing the work, as plain data; entry.py: a piece of work, as plain data
    steps.py  training.py  modules.py  operations.py     the work itself: textbook and ours
    gate.py         whether a contender is right, against float64; who is not is not timed
    worker.py       a process for each contender: makes, is judged, warms up, takes its turns
    rounds.py       the other side of the pipe; contenders take turns in a random order
    timing.py       clocks of a turn; memory.py: peaks
    run.py          a whole run within its budget of minutes
    results.py      one CSV; table.py, plots.py, report.py: what is made of it, apart from measuring
    ablation.py     whether single gains account for the whole

Measuring and reporting are separate commands: `fastgan bench` and `fastgan report`.
"""
