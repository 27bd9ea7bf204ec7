"""How pytest-xdist deals the tests to its workers.

pytest-xdist's own mark for this, `xdist_group`, does nothing under pytest 9.2.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

# Module → group. A group's tests run on one worker, in their order; the largest group begins first.
GROUPS = {
    # launch/setup.sh runs once at a time on a machine, and the demo starts it
    "test_setup.py": "setup",
    "test_demo.py": "setup",
    # one volume to compare with, which takes a job of its own
    "test_aps.py": "aps",
    "test_aps_deployment.py": "aps",
    # a pair of jobs that stays
    "test_scan_files.py": "warm jobs",
    "test_scan_wires.py": "warm jobs",
    # a Slurm cluster
    "test_pair.py": "slurm",
    "test_lab.py": "slurm",
    "test_scaling.py": "slurm",
}


class Scheduling(LoadScopeScheduling):
    """One test at a time goes to the next free worker, except for those of `GROUPS`."""

    def remove_node(self, node: WorkerController) -> str | None:
        # pytest-xdist hands the whole list of a worker that died to the others: a worker that gets what is done already
        # would wait for ever for its end
        assigned = self.assigned_work[node]
        for scope in [scope for scope, tests in assigned.items() if all(tests.values())]:
            del assigned[scope]
        return super().remove_node(node)

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0].rpartition("/")[2]
        return GROUPS.get(module, nodeid)
