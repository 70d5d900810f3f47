"""The recipes of docs/cluster.md, as far as processes on one machine can show them."""

import csv
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ..conftest import ROOT, TINY, command, only_line_of, train_tiny
from .test_kill import assert_equal, children, newest_step, wait_until

ENV = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def losses(run):
    rows = csv.DictReader((run / "metrics.csv").open())
    return [float(row["train/loss"]) for row in rows if row["train/loss"]]


def places(folder):
    return [f"run_dir={folder / 'run'}", f"cache_dir={folder / 'cache'}"]


def torchrun(port, *words):
    command = [sys.executable, "-m", "torch.distributed.run", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    return subprocess.Popen([*command, *words], cwd=ROOT, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_two_machines_train_as_one_process_does(tiny_run, tmp_path):
    """Two starts of torchrun, each a machine with one process."""
    train = ["train.py", *TINY, "trainer=ddp", "trainer.devices=1", "trainer.num_nodes=2", *places(tmp_path)]
    nodes = [
        torchrun(29731, "--nnodes", "2", "--node-rank", str(rank), "--nproc-per-node", "1", *train) for rank in (0, 1)
    ]
    for node in nodes:
        _, errors = node.communicate(timeout=240)
        assert node.returncode == 0, errors.decode()[-2000:]
    assert losses(tmp_path / "run") == pytest.approx(losses(tiny_run), rel=1e-5)
    assert (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.slow
def test_skypilots_yaml_trains_as_one_process_does(tiny_run, tmp_path):
    """Its own `run`, on one machine with two processes in place of GPUs."""
    [text] = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL)
    script = yaml.safe_load(text)["run"].replace("/runs/mine", str(tmp_path / "run"))
    words = [*TINY, f"cache_dir={tmp_path / 'cache'}", "trainer=fsdp"]
    script = script.replace("trainer=fsdp", " ".join(map(shlex.quote, words))).replace("29500", "29733")
    machine = {"NUM_NODES": "1", "NODE_RANK": "0", "NUM_GPUS_PER_NODE": "2", "NODE_IPS": "127.0.0.1\n10.0.0.2"}
    env = ENV | {f"SKYPILOT_{name}": value for name, value in machine.items()}
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(tmp_path / "run") == pytest.approx(losses(tiny_run), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "options"),
    [("submitit", ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]),
     ("ray", ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=1", "trainer=ddp"])],
    ids=["submitit", "ray"],
)  # fmt: skip
def test_a_sweep_runs_every_job(tmp_path, launcher, options):
    """Those of Ray have two processes, which Lightning starts; each of submitit has one."""
    pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher")
    words = ["-m", *options, "seed=0,1"]
    here = [f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}"]
    done = subprocess.run(
        [sys.executable, "train.py", *words, *TINY, *here], cwd=ROOT, env=ENV, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (sweep,) = (tmp_path / "runs" / "shapes_pixels").glob("sweep_*")
    assert losses(sweep / "0") != losses(sweep / "1")
    assert all((sweep / job / "summary.json").is_file() for job in "01")


SUBMITIT = ["-m", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=8"]


@pytest.mark.slow
def test_a_job_of_two_processes_that_is_ended_by_a_signal_saves_and_is_requeued_once(tmp_path, request):
    """First by SIGTERM to both processes, then by SLURM's request for a requeue, to one of them."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    steps, cache = 80, f"cache_dir={tmp_path / 'cache'}"
    train = [*TINY, "trainer=fsdp", "callbacks.checkpoints.every=3", f"trainer.max_steps={steps}",
             "trainer.val_check_interval=80", "trainer.accelerator=cpu", "trainer.log_every_n_steps=2", cache]  # fmt: skip
    whole = command("train.py", *train, f"run_dir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr[-2000:]
    words = [*SUBMITIT, "hydra.launcher.tasks_per_node=2", *train, f"runs_dir={tmp_path}", "resume=auto", "seed=0"]
    with (tmp_path / "log").open("w") as log:
        line = [sys.executable, "train.py", *words]
        sweep = subprocess.Popen(line, cwd=ROOT, env=ENV, stdout=log, stderr=log, start_new_session=True)
    request.addfinalizer(lambda: sweep.poll() is None and os.killpg(sweep.pid, signal.SIGKILL))

    def runs():
        return list((tmp_path / "shapes_pixels").glob("sweep_*/*/checkpoints"))

    def said(text):
        return "".join(file.read_text() for file in tmp_path.glob("shapes_pixels/sweep_*/.submitit/*/*_log.*")).count(
            text
        )

    assert wait_until(lambda: bool(runs()), sweep), (tmp_path / "log").read_text()[-2000:]
    run, [controller] = runs()[0].parent, children(sweep.pid)
    for ends, (number, receivers) in enumerate([(signal.SIGTERM, slice(0, 2)), (signal.SIGUSR2, slice(1, 2))], 1):
        start = newest_step(run)
        assert wait_until(lambda start=start: newest_step(run) > start + 3, sweep)
        for pid in sorted(children(controller))[receivers]:
            os.kill(pid, number)
        assert wait_until(lambda ends=ends: said("Starting with JobEnvironment") == 2 * (ends + 1), sweep)
        assert said("- Requeued job") == said("stopped by") == ends
        assert start + 3 < newest_step(run) < steps
    assert sweep.wait(timeout=240) == 0, (tmp_path / "log").read_text()[-2000:]
    assert said("- Requeued job") == 2
    assert runs() == [run / "checkpoints"]
    assert (run / "summary.json").is_file()
    assert_equal(run, tmp_path / "whole", steps)


@pytest.mark.slow
def test_another_number_of_processes_than_the_config_says_is_refused(tmp_path):
    words = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", *places(tmp_path)]
    started = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "none"}
    assert "the product (2 * 1) does not match the world size (1)" in only_line_of(
        command("train.py", *TINY, *words, **started)
    )


SRUN = """#!/bin/bash
if [ -e {folder}/ended ]; then exec "$@"; fi
touch {folder}/ended
"$@" &
for _ in $(seq 1200); do ls {folder}/run/checkpoints/step_*.ckpt 2>/dev/null && break; sleep 0.1; done
kill -TERM $!
wait $!
"""


@pytest.mark.slow
def test_the_sbatch_script_saves_and_requeues_once(tmp_path):
    """Its own lines, with an srun that sends SIGTERM to its first start, and a scontrol that notes what it is asked."""
    (script,) = re.findall(r"```bash\n(#!/bin/bash.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL)
    longer = ["callbacks.checkpoints.every=5", "trainer.max_steps=200", "trainer.val_check_interval=200"]
    own = [*TINY, *longer, f"cache_dir={tmp_path / 'cache'}"]
    script = re.sub(r"trainer=fsdp \S+ \S+", " ".join(f"'{word}'" for word in own), script)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, text in {
        "train.sh": script,
        "srun": SRUN.format(folder=tmp_path),
        "scontrol": f"#!/bin/bash\necho $@ >> {tmp_path}/requeued\n",
    }.items():
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    env = ENV | {"PATH": f"{bin_folder}{os.pathsep}{ENV['PATH']}", "SLURM_JOB_ID": "7"}
    statuses = [
        subprocess.run([bin_folder / "train.sh", tmp_path / "run"], cwd=ROOT, env=env, capture_output=True).returncode
        for _ in range(2)
    ]
    assert statuses == [143, 0]
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert losses(tmp_path / "run") == losses(train_tiny(tmp_path / "whole", *longer))
