"""What `ipt submit` would tell a cluster, without one: a fake sbatch and squeue keep account."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from demo_run import ROOT, STAGES, Run

from launch import submit as submitting
from launch.cluster import ARRAYS, DISTRIBUTED, Cluster
from launch.sbatch import check_processes
from launch.status import _time_left
from launch.submit import submit
from launch.submitted import read_records
from launch.terminal import CommandFailed
from pipeline.config_file import ConfigError, load_config, load_settings
from stages.recipe import build_graph

CPU, GPU = ROOT / "configs" / "slurm" / "cpu.yaml", ROOT / "configs" / "slurm" / "gpu.yaml"
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
# Each call of sbatch is a job: its number, and the queue's line for each of its tasks.
FAKE_SBATCH = """#!/bin/bash
cd "${0%/*}"
echo "$*" >>calls
job=$((100 + $(wc -l <calls)))
if [ -e full ] && [ "$(wc -l <calls)" -gt "$(cat full)" ]; then
  echo "queue is full" >&2
  exit 1
fi
for option; do
  case $option in
    --comment=*) comment=${option#*=} ;;
    --array=*) array=${option#*=} ;;
    *.sbatch) name=$(sed -n 's/^#SBATCH --job-name=//p' "$option") ;;
  esac
done
IFS=,
ranges=${array%%\\%*}
for range in ${ranges:-N/A}; do
  case $range in
    [0-9]*) tasks=$(seq -s , "${range%-*}" "${range#*-}") ;;
    *) tasks=$range ;;
  esac
  for task in $tasks; do
    echo "$job|$task|PENDING|$name|Dependency|$comment" >>queue
  done
done
echo "$job;cluster"
"""
FAKES = {
    "sbatch": FAKE_SBATCH,
    "squeue": '#!/bin/bash\ncat "$(dirname "$0")/queue" 2>/dev/null || true\n',
    "scancel": '#!/bin/bash\necho "$*" >>"$(dirname "$0")/cancelled"\n'
    'for job; do sed -i "/^$job|/d" "$(dirname "$0")/queue"; done\n',
    "scontrol": "#!/bin/bash\necho 'MaxArraySize            = 1001'\n",
}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in FAKES.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def calls(fake: Path) -> list[str]:
    path = fake / "calls"
    return path.read_text().splitlines() if path.exists() else []


def waits_for(call: str) -> set[str]:
    found = re.search(r"--dependency=afterok:(\S+)", call)
    return set(found[1].split(":")) if found else set()


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path)


def submit_run(run: Run, cluster: Path = CPU, *overrides: str, dry_run: bool = False) -> int:
    values = (f"runtime.runs={run.folder.parent}", *overrides)
    return submit(run.config, values, cluster, dry_run=dry_run)


def dry_run(run: Run, capsys, cluster: Path = CPU, *overrides: str) -> str:
    submit_run(run, cluster, *overrides, dry_run=True)
    return capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "slurm").glob("*.yaml")), ids=str)
def test_example_clusters_are_valid_and_carry_a_run(path, tmp_path):
    cluster = load_settings(path, Cluster)
    name = "imagenet" if path.stem == "gpu" else "demo"
    config = load_config(ROOT / "configs" / f"{name}.yaml")

    check_processes(config, cluster, build_graph(config).stages)


def test_every_stage_has_its_section(run):
    for path in CONFIGS:
        for stage in build_graph(load_config(path)).stages:
            assert (stage.launch == "array") == (stage.kind in ARRAYS), stage.name
            assert (stage.launch == "distributed") == (stage.kind in DISTRIBUTED), stage.name
            Cluster.model_validate({"stages": {stage.kind: {"cpus": 2}}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jobs: {time: 24:00:00}", 'jobs.time: 86400: write it in quotes, as in "24:00:00"'),
        ("jobs: {time: '30'}", "jobs.time: '30'"),
        ("jobs: {memory: 64}", "jobs.memory: 64"),
        ("jobs: {partitoin: gpu}", "did you mean 'partition'"),
        ("stages: {pretrian: {cpus: 1}}", "'pretrain', 'finetune'"),
        ("single: {nodes: 2}", "single.nodes: 2, but only distributed stages"),
        ("stages: {evaluate: {nodes: 2}}", "stages.evaluate.nodes: 2"),
        ("array: {nodes: 2}", "use more parts"),
        ("stages: {pretrain: {parts: 2}}", "stages.pretrain: parts and at_once belong under array"),
        ("jobs: {partition: 'a b'}", "jobs.partition: 'a b'"),
        ("jobs: {cpus: true}", "jobs.cpus: True: a number is needed"),
    ],
)
def test_mistakes_in_a_cluster_file_are_named(tmp_path, text, message):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)

    with pytest.raises(ConfigError) as error:
        load_settings(path, Cluster)

    assert message in str(error.value)


def test_resources_come_from_the_nearest_section(tmp_path):
    graph = build_graph(load_config(ROOT / "configs" / "imagenet.yaml"))
    cluster = load_settings(GPU, Cluster)
    stages = {stage.kind: cluster.resources(stage) for stage in graph.stages}

    assert (stages["source"].partition, stages["source"].account) == ("cpu", "my-project")
    assert (stages["pretrain"].nodes, stages["pretrain"].gpus) == (4, 8)
    assert (stages["corrupt"].parts, stages["corrupt"].time) == (64, "8:00:00")
    assert (stages["evaluate"].partition, stages["evaluate"].time) == ("gpu", "4:00:00")


def test_processes_that_a_batch_does_not_divide_over_are_refused(run, tmp_path):
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("distributed: {nodes: 5}")

    with pytest.raises(ConfigError, match="pretrain on 5 nodes with 1 processes each: batch: 24"):
        submit_run(run, cluster)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_snapshot_of_a_config_is_that_config(path, tmp_path):
    config = load_config(path, ("pretrain.learning_rate=5e-5", "runtime.shards_at=s3://a/b"))
    snapshot = tmp_path / "config-1.yaml"
    snapshot.write_text(yaml.safe_dump(submitting._values(config)))

    assert load_config(snapshot) == config


def test_a_dry_run_prints_the_script_of_every_stage_and_writes_nothing(run, capsys):
    text = dry_run(run, capsys)

    assert set(re.findall(r"^# (\S+) of the run tiny;", text, re.M)) == STAGES
    assert "# sbatch --dependency=afterok:source@photos:rain-layers --array=0-3 " in text
    assert not run.folder.exists()


def script_of(text: str, stage: str) -> str:
    (found,) = re.findall(rf"^#!/bin/bash\n# {stage} of .*?(?=^\n# sbatch|\Z)", text, re.M | re.S)
    return found


@pytest.mark.parametrize(
    ("stage", "cluster", "overrides"),
    [
        ("pretrain", CPU, ("runtime.engine=zero1",)),
        ("corrupt-sr2@photos", CPU, ()),
    ],
    ids=["pretrain", "corrupt"],
)
def test_batch_scripts_read_as_they_did(run, capsys, stage, cluster, overrides):
    text = dry_run(run, capsys, cluster, *overrides)
    found = script_of(text, stage)
    for place, name in (
        (str(run.folder.parent), "/data/runs"),
        (sys.executable, "/checkout/.venv/bin/python"),
        (str(ROOT), "/checkout"),
        (str(Path.cwd()), "/checkout"),
    ):
        found = found.replace(place, name)
    found = re.sub(r"config-[0-9a-f]{12}", "config-0123456789ab", found)
    golden = Path(__file__).parent / "golden" / f"{stage.partition('-')[0]}.sbatch"

    assert found == golden.read_text()


def test_batch_scripts_are_good_bash(run, capsys, tmp_path):
    text = dry_run(run, capsys)
    for stage in STAGES:
        script = tmp_path / "script"
        script.write_text(script_of(text, stage))
        subprocess.run(["bash", "-n", script], check=True)


def test_a_node_of_gpus_gets_a_process_for_each(tmp_path, capsys):
    # As much of ImageNet as a plan needs.
    folder = tmp_path / "imagenet"
    folder.mkdir()
    values = (f"sources.imagenet.path={folder}", f"runtime.runs={tmp_path}")

    submit(ROOT / "configs" / "imagenet.yaml", values, GPU, dry_run=True)

    script = script_of(capsys.readouterr().out, "pretrain")
    for line in (
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --partition=gpu",
        "module load cuda/12.8",
        "-m accelerate.commands.launch --multi_gpu",
        "--num_machines 4 --num_processes 32",
        '--machine_rank "$SLURM_NODEID"',
    ):
        assert line in script
    assert "CUDA_VISIBLE_DEVICES" not in script


def test_everything_of_a_cluster_file_reaches_the_scripts(run, capsys, tmp_path):
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("""
jobs: {account: a, qos: low, memory: 3G, options: ["--constraint=ssd", "--exclude=n[7-9]"]}
single: {partition: cpu, time: "1-12"}
distributed: {partition: gpu, nodes: 2}
stages: {report: {cpus: 5}, pretrain: {time: "2:00:00"}}
setup: ["module load python", 'export A="b c"']
container: apptainer exec --bind /data image.sif
python: /opt/python
seconds_before_limit: 77
""")

    text = dry_run(run, capsys, cluster, "runtime.threads_per_process=3")

    report, pretrain = script_of(text, "report"), script_of(text, "pretrain")
    for line in (
        *("#SBATCH --partition=cpu", "#SBATCH --account=a", "#SBATCH --qos=low"),
        *("#SBATCH --mem=3G", "#SBATCH --time=1-12", "#SBATCH --cpus-per-task=5"),
        *("#SBATCH --constraint=ssd", "#SBATCH --exclude=n[7-9]", "#SBATCH --signal=USR2@77"),
        *("module load python", 'export A="b c"', "export OMP_NUM_THREADS=3 "),
        f"exec apptainer exec --bind /data image.sif /opt/python {ROOT}/launch/stage.py ",
    ):
        assert f"\n{line}" in report.replace("\n  exec", "\nexec")
    assert "#SBATCH --partition=gpu" in pretrain
    assert "#SBATCH --time=2:00:00" in pretrain
    assert "/opt/python -m torch.distributed.run --nnodes 2 --nproc_per_node 1 " in pretrain


def test_every_job_waits_for_what_its_stage_reads(run, fake):
    submit_run(run)

    jobs = {each.stage: each.job for each in read_records(run.folder / "slurm")}
    graph = build_graph(load_config(run.config))
    assert set(jobs) == STAGES
    for call in calls(fake):
        name = re.search(r"/slurm/(\S+)\.sbatch", call)[1]
        assert waits_for(call) == {jobs[each.name] for each in graph.stage(name).inputs.values()}
    assert all(
        "--kill-on-invalid-dep=yes" in (run.folder / "slurm" / f"{stage}.sbatch").read_text()
        for stage in STAGES
    )


def test_submitting_twice_hands_in_nothing_twice(run, fake, capsys):
    submit_run(run)
    before = calls(fake)
    capsys.readouterr()

    submit_run(run)

    assert calls(fake) == before
    assert "nothing to submit" in capsys.readouterr().out


def test_two_submissions_at_once_hand_in_every_stage_once(run, fake):
    command = run.command("submit", "--cluster", str(CPU))
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]

    outputs = [process.communicate(timeout=100)[0].decode() for process in both]

    assert [process.returncode for process in both] == [0, 0], outputs
    assert len(calls(fake)) == len(STAGES)


def test_jobs_whose_records_are_lost_are_known_by_what_they_carry(run, fake):
    submit_run(run)
    before = calls(fake)
    (run.folder / "slurm" / "jobs.jsonl").unlink()

    submit_run(run)

    assert calls(fake) == before


def test_a_submission_that_broke_off_is_completed(run, fake):
    (fake / "full").write_text("5")
    with pytest.raises(CommandFailed, match="queue is full"):
        submit_run(run)
    handed_in = [each.stage for each in read_records(run.folder / "slurm")]
    (fake / "full").unlink()

    submit_run(run)

    assert len(handed_in) == 5
    stages = [each.stage for each in read_records(run.folder / "slurm")]
    assert sorted(stages) == sorted(STAGES)


def test_what_waits_for_a_job_that_is_gone_is_handed_in_again(run, fake):
    submit_run(run)
    first = {each.stage: each.job for each in read_records(run.folder / "slurm")}
    queue = (fake / "queue").read_text().splitlines(keepends=True)
    gone = first["rain-layers"]
    (fake / "queue").write_text("".join(line for line in queue if not line.startswith(gone)))

    submit_run(run)

    second = {each.stage: each.job for each in read_records(run.folder / "slurm")}
    changed = {stage for stage in STAGES if first[stage] != second[stage]}
    graph = build_graph(load_config(run.config))
    assert changed == graph.downstream("rain-layers")
    cancelled = set((fake / "cancelled").read_text().split())
    assert cancelled == {first[stage] for stage in changed - {"rain-layers"}}


def test_parts_of_an_array_that_are_in_the_queue_are_not_handed_in_again(run, fake):
    submit_run(run)
    queue = (fake / "queue").read_text()
    first = {each.stage: each.job for each in read_records(run.folder / "slurm")}
    job = first["corrupt-sr2@photos"]
    kept = [line for line in queue.splitlines(keepends=True) if not line.startswith(f"{job}|2|")]
    (fake / "queue").write_text("".join(kept))

    submit_run(run)

    records = [
        each for each in read_records(run.folder / "slurm") if each.job not in first.values()
    ]
    assert [(each.stage, each.tasks) for each in records if each.tasks] == [
        ("corrupt-sr2@photos", (2,))
    ]
    # Task 2 of the first array will never end well: the rest of it is waited for by itself.
    (pretrain,) = [each for each in records if each.stage == "pretrain"]
    new = records[0].job
    assert {f"{job}_0", f"{job}_1", f"{job}_3", new} <= set(pretrain.after)
    assert job not in pretrain.after


def test_finished_stages_are_not_handed_in(finished, fake, capsys):
    submit(finished.config, (f"runtime.runs={finished.folder.parent}",), CPU, dry_run=False)

    assert calls(fake) == []
    assert "every stage is done" in capsys.readouterr().out


def test_another_config_is_refused_while_jobs_of_the_first_are_in_the_queue(run, fake):
    submit_run(run)
    before = calls(fake)

    with pytest.raises(CommandFailed, match="in the queue with another config"):
        submit_run(run, CPU, "pretrain.batch=48")
    submit_run(run, CPU, "runtime.log_every_steps=7")  # decides nothing

    assert calls(fake) == before


def test_arrays_are_cut_to_what_the_cluster_takes(run, fake, tmp_path):
    (fake / "scontrol").write_text("#!/bin/bash\necho 'MaxArraySize            = 10'\n")
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("array: {parts: 25, at_once: 9}")

    submit_run(run, cluster)

    of_stage = [call for call in calls(fake) if "corrupt-sr2@photos.sbatch" in call]
    arrays = [re.search(r"--array=(\S+)", call)[1] for call in of_stage]
    assert arrays == ["0-9%3", "0-9%3", "0-4%3"]
    assert [call.split()[-1] for call in of_stage] == ["0", "10", "20"]


def test_ranges_are_as_slurm_writes_them():
    assert submitting._ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"


def test_cancel_names_the_jobs_of_this_run_only(run, fake, capsys):
    submit_run(run)
    (fake / "queue").write_text(
        (fake / "queue").read_text() + "999|N/A|RUNNING|tiny:report|None|\n"
    )

    submitting.cancel(run.config, (f"runtime.runs={run.folder.parent}",))

    cancelled = (fake / "cancelled").read_text().split()
    assert sorted(cancelled) == sorted(each.job for each in read_records(run.folder / "slurm"))
    assert (fake / "queue").read_text().startswith("999|")


def test_without_slurm_a_sentence_says_what_does_the_same_here(run, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(CommandFailed, match=r"sbatch is not on the PATH: .*`ipt run CONFIG`"):
        submit_run(run)
    assert not run.folder.exists()


def test_a_controller_that_does_not_answer_ends_a_submission_before_it_begins(run, fake):
    (fake / "squeue").write_text(
        "#!/bin/bash\necho 'Unable to contact slurm controller' >&2\nexit 1"
    )

    with pytest.raises(CommandFailed, match="squeue: Unable to contact slurm controller"):
        submit_run(run)

    assert calls(fake) == []


def test_status_tells_from_folders_what_a_job_said_last(run, fake, monkeypatch):
    submit_run(run)
    job = {each.stage: each.job for each in read_records(run.folder / "slurm")}["rain-layers"]
    (fake / "queue").unlink()
    events = run.folder / "slurm" / "jobs" / f"{job}.events"
    events.write_text("2026-01-01 00:00:00 start 0 on n1\n2026-01-01 00:00:09 failed: why\n")
    (run.folder / "slurm" / "jobs" / f"{job}.ended").write_text("1\n")
    with_slurm = run("status")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")

    for output in (with_slurm, run("status")):
        rows = {line.split()[1]: line for line in output.splitlines() if line.startswith("  ")}
        assert re.search(rf"✗  rain-layers +failed +{job}  failed: why", rows["rain-layers"])
        assert re.search(r"✗  pretrain +cancelled", rows["pretrain"])
    assert "SLURM does not answer here" in output


def test_status_has_the_queue_and_the_time_left(run, fake):
    submit_run(run)
    queue = (fake / "queue").read_text()
    queue = queue.replace(
        "0|PENDING|tiny:corrupt-sr2@photos|Dependency", "0|RUNNING|tiny:corrupt-sr2@photos|None"
    )
    (fake / "queue").write_text(queue)

    rows = {line.split()[1]: line for line in run("status").splitlines() if line.startswith("  ")}

    assert "1 running, 3 pending" in rows["corrupt-sr2@photos"]
    assert re.search(r"pretrain +pending +\d+ +Dependency", rows["pretrain"])


def test_status_shows_the_last_step_of_a_training(run, fake):
    run("run", "--before", "pretrain")
    (folder,) = {
        each.folder
        for each in build_graph(load_config(run.config)).resolve(run.folder).values()
        if each.stage.name == "pretrain"
    }
    (folder / "logs").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 2, "samples": 48, "samples_per_second": 6.0}\n')
    (folder / "logs" / "log.txt").write_text(
        "2026-01-01 00:00:00 step 2/6  samples 48  loss 5  6 samples/s\n"
        "2026-01-01 00:00:01 saved step-00000002 in 0.1 s\n"
    )

    (row,) = (line for line in run("status").splitlines() if line.startswith("  ·  pretrain "))

    assert "step 2/6  samples 48  loss 5  6 samples/s (" in row
    assert row.endswith("0:00:16")  # 4 steps of 24 samples


def test_time_left_follows_the_rate(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 50, "samples": 400, "samples_per_second": 2.0}\n')

    assert _time_left(metrics, 1000) == "1:03:20"  # 950 steps of 8 samples
