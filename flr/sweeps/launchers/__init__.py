"""Run the jobs of a sweep: several at once on this machine, as a SLURM job array, or on a Ray cluster.

Each job is one process, ``python -m flr.train`` with the job's overrides, that writes to a log file in the sweep's folder.
The launchers differ only in who starts the process. The sweep's table is read from MLflow, not from the launcher.
"""
