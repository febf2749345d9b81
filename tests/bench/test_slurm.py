"""launcher=slurm beside a cluster of shell scripts that print what Slurm's own commands print."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from bench import slurm
from bench.run import advice, main
from bench.slurm import failure, nodes, queue
from methods.errors import UserError

SINFO = """cpu*|64|(null)|1-00:00:00
gpu|32|gpu:a100:4(S:0-1)|infinite
gpu|96|(null)|infinite
mixed|8|gpu:a100:1,gpu:2|30:00
"""
# Runs the array in the place of Slurm; --kill=1: the second job is gone without a trace.
SBATCH = """#!/bin/bash
echo "$@" > {folder}/asked
for option; do
  case $option in
    --array=*) last=${{option#--array=0-}} ;;
    --account=nobody) echo "sbatch: error: Batch job submission failed: Invalid account" >&2; exit 1 ;;
    --kill=1) killed=1 ;;
  esac
done
for number in $(seq 0 $last); do
  [ "$number" = "$killed" ] || SLURM_ARRAY_TASK_ID=$number bash "$option" > "$(dirname "$option")/$number.log" 2>&1
done
echo "12;cluster"
"""
RUN = 'import sys; print("in short:", *sys.argv[3:]); sys.exit(3 if "limit=3" in sys.argv else 0)'


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH with sinfo, sbatch and squeue; jobs run a script in the place of bench.run."""
    python = f"#!/bin/sh\nexec {sys.executable} -c '{RUN}' \"$@\"\n"
    for name, text in {
        "sinfo": f"#!/bin/sh\ncat <<'END'\n{SINFO}END\n",
        "sbatch": SBATCH.format(folder=tmp_path),
        "squeue": "#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2\nexit 1\n",
        "python": python,
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(slurm, "POLL_S", 0.01)
    monkeypatch.setattr(slurm.sys, "executable", str(tmp_path / "python"))
    return tmp_path


def submitted(cluster: Path, *overrides: str) -> int:
    given = ["launcher=slurm", "method=vanilla", f"results_dir={cluster}/results"]
    return main(["-m", *given, *overrides])


def test_jobs_are_watched_to_the_end_and_the_next_command_is_named(cluster: Path, capsys) -> None:
    assert submitted(cluster, "slurm.gpus=0", "slurm.cpus=2", "slurm.options={qos: high}", "limit=1,2") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "submitted to Slurm: 2 jobs (12; scancel 12 ends them)"
    assert printed[-2:] == ["2 of 2 done", f"next: python -m bench.report results_dir={cluster}/results"]
    asked = (cluster / "asked").read_text().split()
    assert {"--cpus-per-task=2", "--time=1440", "--qos=high", "--array=0-1"} <= set(asked)
    assert not [option for option in asked if option.startswith(("--gres", "--partition", "--account"))]
    log = Path(printed[1].removeprefix("logs: ")).with_name("1.log")
    assert log.read_text() == f"in short: method=vanilla results_dir={cluster}/results limit=2\n"


def test_what_is_asked_for_reaches_sbatch(cluster: Path) -> None:
    assert submitted(cluster, "slurm.partition=gpu", "slurm.account=lab", "slurm.gpus=4") == 0
    assert (
        (cluster / "asked").read_text().startswith("--parsable --partition=gpu --account=lab --gres=gpu:4 --ntasks=1")
    )


def test_a_failed_job_and_a_killed_one_are_named_with_their_logs(cluster: Path, capsys) -> None:
    assert submitted(cluster, "slurm.gpus=0", "limit=3,4", "slurm.options={kill: 1}") == 3
    captured = capsys.readouterr()
    first, second = captured.err.splitlines()
    assert first.startswith("limit=3 ended with status 3; log: ") and "/0.log, which ends: in short: " in first
    assert second.startswith("limit=4 was killed or ran out of time; log: ") and second.endswith("/1.log")
    assert "2 of 2 done, 2 failed" in captured.out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["slurm.partition=gppu"], "slurm.partition=gppu: unknown; did you mean gpu? valid: cpu, gpu, mixed"),
        ([], "slurm.gpus=1: partition cpu has no GPUs; slurm.gpus=0 asks for none"),
        (["slurm.partition=gpu", "slurm.gpus=5"], "slurm.gpus=5: partition gpu gives at most 4 to a job"),
        (["slurm.gpus=0", "slurm.cpus=65"], "slurm.cpus=65: partition cpu gives at most 64 to a job"),
        (["slurm.partition=mixed"], "slurm.minutes=1440: partition mixed gives at most 30 to a job"),
        (["slurm.partition=gpu", "slurm.cpus=96"], "slurm.cpus=96 slurm.gpus=1: no node of partition gpu has both"),
        (["slurm.gpus=0", "slurm.account=nobody"], "sbatch: Batch job submission failed: Invalid account"),
        (["slurm.gpus=-1"], "slurm.gpus=-1: must be an integer of at least 0"),
        (["slurm.cpus=many"], "slurm.cpus=many: must be an integer"),
        (["slurm.partion=gpu"], "slurm.partion: unknown override; did you mean slurm.partition?"),
        (["limit=1,none"], "limit=none: must be an integer or null"),
    ],
)
def test_what_the_cluster_has_not_is_one_line(cluster: Path, capsys, overrides: list[str], message: str) -> None:
    assert submitted(cluster, *overrides) == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1
    assert (cluster / "asked").exists() == ("account" in message)


def test_without_sbatch_it_says_so(capsys, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["launcher=slurm", "method=vanilla"]) == 2
    assert capsys.readouterr().err.startswith("launcher=slurm: there is no sbatch here")


def test_a_sinfo_that_does_not_answer_checks_nothing(cluster: Path) -> None:
    (cluster / "sinfo").write_text("#!/bin/sh\nexit 1\n")
    assert nodes() == [] and submitted(cluster, "slurm.partition=any") == 0


def test_a_cluster_without_default_partition_asks_for_one(cluster: Path) -> None:
    known = [node for node in nodes() if not node.default]
    asked = slurm.Slurm(partition=None, account=None, cpus=1, gpus=0, minutes=1, options=None)
    with pytest.raises(UserError, match=r"slurm.partition: this cluster has no default one; valid: gpu, mixed"):
        slurm.check(asked, known)


def test_the_queue_says_what_runs_and_why_others_wait(cluster: Path) -> None:
    (cluster / "squeue").write_text("#!/bin/sh\nprintf '0|RUNNING|None\\n1|PENDING|Resources\\n'\n")
    assert queue("12") == {0: "RUNNING", 1: "Resources"}
    assert slurm._progress({}, queue("12") or {}, 2) == "0 of 2 done, 1 running, 1 waiting (Resources)"
    (cluster / "squeue").write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
    assert queue("12") is None


def test_an_interrupted_watcher_says_that_the_jobs_go_on(tmp_path: Path) -> None:
    assert "jobs that were submitted go on" in advice(["-m", "launcher=slurm"])
    assert failure("", None, tmp_path / "0.log").startswith("the job was killed")


def test_limits_of_time_in_every_form_are_minutes() -> None:
    assert [slurm._minutes(text) for text in ("2:00:00", "1-12:30:00", "30:00", "infinite")] == [
        120,
        2190,
        30,
        math.inf,
    ]
