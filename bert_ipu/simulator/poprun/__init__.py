"""poprun: starts the instances of a program through mpirun, watches them, and ends them all when one fails.

    python -m bert_ipu.simulator.poprun [options] program [arguments]

`options.py` reads the command line, `plan.py` lays instances over hosts, `launch.py` runs mpirun. mpirun
starts one `guard.py` per instance, which runs the program and reports its life (`vital.py`) to `control.py`,
where the verdict is passed.
"""
