"""What SLURM says about a task, in torch.distributed's words."""

from __future__ import annotations

import pytest

from lavis_ext.common.errors import ConfigError
from lavis_ext.runners.device import first_host, from_slurm, translate_slurm

TASK = {
    "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_JOB_NODELIST": "gpu[07-08]", "SLURM_JOB_ID": "123456",
}  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("login1", "login1"),
        ("a1,b2", "a1"),
        ("gpu[007-010,12],login1", "gpu007"),
        ("gpu[12,007-010]", "gpu12"),
        ("rack[1-2]-ib", "rack1-ib"),
        ("node-3.cluster.org,x", "node-3.cluster.org"),
        (" n[9] ", "n9"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize("nodes", ["", ",a", "[1-2]"])
def test_a_list_without_a_host_is_refused(nodes: str) -> None:
    with pytest.raises(ConfigError, match="MASTER_ADDR"):
        first_host(nodes)


def test_a_task_of_srun_learns_which_it_is() -> None:
    found = from_slurm(TASK)
    assert found == {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu07", "MASTER_PORT": str(20_000 + 123456 % 20_000),
    }  # fmt: skip


def test_what_is_given_counts() -> None:
    assert from_slurm({**TASK, "MASTER_ADDR": "head", "MASTER_PORT": "5"})["MASTER_ADDR"] == "head"
    assert from_slurm({**TASK, "SLURM_STEP_NUM_TASKS": "1"}) == {}
    assert from_slurm({**TASK, "SLURM_STEP_NODELIST": "b[3-4]"})["MASTER_ADDR"] == "b3"


@pytest.mark.parametrize("more", [{"RANK": "0"}, {"SLURM_NTASKS": "1"}])
def test_another_launcher_or_one_task_changes_nothing(more: dict[str, str]) -> None:
    assert from_slurm({**TASK, **more}) == {}
    assert from_slurm({}) == {}


def test_tasks_of_uneven_nodes_are_counted_by_the_first() -> None:
    task = {name: value for name, value in TASK.items() if name != "SLURM_NTASKS_PER_NODE"}
    assert from_slurm({**task, "SLURM_STEP_TASKS_PER_NODE": "3(x2),1"})["LOCAL_WORLD_SIZE"] == "3"
    assert from_slurm(task)["LOCAL_WORLD_SIZE"] == "4"


def test_variables_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="no number"):
        from_slurm({**TASK, "SLURM_PROCID": "x"})


def test_the_environment_is_filled_in() -> None:
    environment = dict(TASK)
    translate_slurm(environment)
    translate_slurm(environment)
    assert environment["RANK"] == "3"
