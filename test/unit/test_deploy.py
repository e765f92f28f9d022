"""The examples in deploy/: each run with a stub of its engine, or checked against its schema."""
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mobilenetv3 import config, options

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def executable(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path


# ---- Slurm


TRAIN = """
import os, sys, time
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
with open("rank." + os.environ["RANK"], "w") as file:
    print(*[os.environ[name] for name in names], *sys.argv[1:], file=file)
time.sleep(float(os.environ.get("SLEEP", 0)))
sys.exit(int(os.environ.get("STATUS", 0)))
"""
# Starts its command once a node, all on this machine. A TERM or HUP of its own makes it have them
# killed ("forcing job termination"), as the real one does; the signals of scancel go past it.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
echo "${SRUN_CPUS_PER_TASK-}" >srun.cpus
set -m
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
    SLURM_NODEID=$node "$@" &
done
jobs -p >srun.steps
trap 'for job in $(<srun.steps); do kill -KILL -- "-$job"; done' TERM HUP
status=0
for job in $(<srun.steps); do
    while kill -0 "$job" 2>/dev/null; do wait "$job" || status=$?; done
done
exit $status
"""
# With --signal=NAME it is sent to every process of the steps, and not to the job script.
SCANCEL = """#!/bin/bash
echo "$*" >>scancel.calls
[[ $1 == --signal=* && $2 == "$SLURM_JOB_ID" ]] || exit 1
for job in $(<srun.steps); do kill -s "${1#--signal=}" -- "-$job"; done
"""
SCONTROL = """#!/bin/bash
case "$1" in
    show) printf '%s\\n' 127.0.0.1 localhost ;;
    *) echo "$*" >>scontrol.calls ;;
esac
"""


@pytest.fixture
def slurm(tmp_path):
    """slurm(arguments..., VARIABLE=value) starts the job script as Slurm would; in tmp_path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    executable(folder / "srun", SRUN)
    executable(folder / "scontrol", SCONTROL)
    executable(folder / "scancel", SCANCEL)
    (tmp_path / "train.py").write_text(TRAIN)

    def start(*arguments, **variables):
        env = dict(os.environ, PATH=f"{folder}:{os.environ['PATH']}", PYTHON=sys.executable,
                   SLURM_JOB_ID=str(70000 + os.getpid() % 10000), SLURM_JOB_NUM_NODES="2",
                   SLURM_JOB_NODELIST="n[1-2]", RANKS_PER_NODE="1")
        env.update(variables)
        return subprocess.Popen(
            ["bash", str(DEPLOY / "slurm.sbatch"), *arguments], cwd=str(tmp_path), env=env,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    return start


def test_slurm_starts_torchrun_on_every_node(slurm, tmp_path):
    pytest.importorskip("torch.distributed.run", reason="torchrun came with PyTorch 1.9")
    job = slurm("--output=run dir", "--lr", "0.1")
    out, err = job.communicate(timeout=100)
    assert job.returncode == 0, err
    port = 20000 + (70000 + os.getpid() % 10000) % 10000
    assert out == f"rendezvous: 127.0.0.1:{port}, 2 nodes, start 0 of this job\n"
    for rank in (0, 1):
        assert (tmp_path / f"rank.{rank}").read_text() == (
            f"{rank} 2 0 127.0.0.1 {port} --resume auto --output=run dir --lr 0.1\n")


@pytest.fixture
def launcher(tmp_path):
    """In the place of Python and torchrun: sleeps, and ends with a status; TERM lets it save."""
    return str(executable(tmp_path / "launcher", (
        '#!/bin/bash\ntrap \'sleep 1; touch "saved.$SLURM_NODEID"; exit 143\' TERM\n'
        'touch "node.$SLURM_NODEID"\n'
        'sleep "${SLEEP:-0}" >/dev/null 2>&1 & wait $!\nexit "${STATUS:-0}"\n')))


def test_slurm_job_fails_when_the_training_does(slurm, tmp_path, launcher):
    job = slurm("--output", "run", STATUS="3", PYTHON=launcher)
    job.communicate(timeout=60)
    assert job.returncode == 3
    assert not (tmp_path / "scontrol.calls").exists()


@pytest.mark.parametrize("name, status, calls", [("USR1", 0, "requeue 7"), ("TERM", 143, "")])
def test_slurm_job_saves_and_is_requeued_at_its_time_limit_and_not_when_it_is_cancelled(
        slurm, tmp_path, launcher, name, status, calls):
    """srun, sent a TERM itself, has the ranks killed before they could save."""
    job = slurm("--output=run", SLEEP="60", PYTHON=launcher)
    end = time.monotonic() + 60
    while len(list(tmp_path.glob("node.*"))) < 2:
        assert time.monotonic() < end and job.poll() is None, job.communicate()
        time.sleep(0.1)
    job.send_signal(getattr(signal, f"SIG{name}"))
    job.wait(timeout=40)  # before the training would have ended
    job.communicate(timeout=60)
    assert job.returncode == status
    asked = tmp_path / "scontrol.calls"
    assert (asked.read_text() if asked.exists() else "").startswith(calls)
    assert asked.exists() == bool(calls)
    assert sorted(path.name for path in tmp_path.glob("saved.*")) == ["saved.0", "saved.1"]


@pytest.mark.parametrize("given, told", [({}, "64"), ({"SLURM_CPUS_PER_TASK": "24"}, "24")])
def test_slurms_srun_is_told_how_many_cores_a_node_gets(slurm, tmp_path, launcher, given, told):
    """From Slurm 22.05 on it does not take that over from sbatch."""
    job = slurm("--output=run", PYTHON=launcher, **given)
    job.communicate(timeout=60)
    assert job.returncode == 0
    assert (tmp_path / "srun.cpus").read_text() == told + "\n"


def test_slurm_job_needs_a_folder_to_resume_from(slurm):
    job = slurm("--lr", "0.1")
    assert "--output DIR is needed" in job.communicate(timeout=60)[1]
    assert job.returncode == 2


def test_slurm_script_is_a_job_script():
    lines = (DEPLOY / "slurm.sbatch").read_text().splitlines()
    asked = [line.split()[1].split("=")[0] for line in lines if line.startswith("#SBATCH ")]
    assert {"--nodes", "--ntasks-per-node", "--requeue", "--signal"} <= set(asked)
    # Slurm stops reading them at the first command.
    first_command = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:])


# ---- Kubernetes: the required fields of each kind, and the types of all that we use


TEXT, WHOLE, LIST = str, int, list
CONTAINER = {
    "name!": TEXT, "image!": TEXT, "workingDir": TEXT, "command": [TEXT], "args": [TEXT],
    "env": [{"name!": TEXT, "value!": TEXT}],
    "ports": [{"name": TEXT, "containerPort!": WHOLE}],
    "resources": {"requests": {"*": WHOLE}, "limits!": {"*": WHOLE}},
    "volumeMounts": [{"name!": TEXT, "mountPath!": TEXT, "readOnly": bool}],
}
VOLUME = {
    "name!": TEXT, "persistentVolumeClaim": {"claimName!": TEXT, "readOnly": bool},
    "emptyDir": {"medium": TEXT}, "hostPath": {"path!": TEXT, "type": TEXT},
}
METADATA = {"name": TEXT, "labels": {"*": TEXT}}
POD = {
    "metadata": METADATA,
    "spec!": {"containers!": [CONTAINER], "volumes": [VOLUME], "restartPolicy": TEXT,
              "nodeSelector": {"*": TEXT}, "terminationGracePeriodSeconds": WHOLE},
}
POLICIES = [{"event!": TEXT, "action!": TEXT}]
REPLICAS = {"replicas!": WHOLE, "restartPolicy!": TEXT, "template!": POD}
SCHEMAS = {
    "pytorchjob.yaml": {
        "apiVersion!": "kubeflow.org/v1", "kind!": "PyTorchJob", "metadata!": METADATA,
        "spec!": {
            "nprocPerNode": TEXT,
            "runPolicy": {"cleanPodPolicy": TEXT, "backoffLimit": WHOLE},
            "pytorchReplicaSpecs!": {"Master!": REPLICAS, "Worker": REPLICAS},
        },
    },
    "volcano_ascend.yaml": {
        "apiVersion!": "batch.volcano.sh/v1alpha1", "kind!": "Job", "metadata!": METADATA,
        "spec!": {
            "schedulerName!": "volcano", "queue": TEXT, "minAvailable!": WHOLE, "maxRetry": WHOLE,
            "plugins": {"svc": [TEXT], "env": [TEXT]}, "policies": POLICIES,
            "tasks!": [{"name!": TEXT, "replicas!": WHOLE, "policies": POLICIES,
                        "template!": POD}],
        },
    },
}


def check(value, schema, path="", problems=None):
    """Problems of a value, one text each. In a schema `name!` is required and `*` any name."""
    problems = [] if problems is None else problems
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            problems.append(f"{path}: expected a mapping")
            return problems
        known = {name.rstrip("!"): part for name, part in schema.items()}
        missing = [name[:-1] for name in schema if name.endswith("!") and name[:-1] not in value]
        problems += [f"{path}.{name} is missing" for name in missing]
        for name, item in value.items():
            if name not in known and "*" not in known:
                problems.append(f"{path}.{name} is unknown")
            else:
                check(item, known.get(name, known.get("*")), f"{path}.{name}", problems)
    elif isinstance(schema, list):
        if not isinstance(value, list):
            problems.append(f"{path}: expected a list")
        else:
            for number, item in enumerate(value):
                check(item, schema[0], f"{path}[{number}]", problems)
    elif isinstance(schema, type):
        if type(value) is not schema:
            problems.append(f"{path}: expected {schema.__name__}, got {value!r}")
    elif value != schema:
        problems.append(f"{path}: expected {schema!r}, got {value!r}")
    return problems


def load(name):
    return yaml.safe_load((DEPLOY / name).read_text())


def pods(job):
    spec = job["spec"]
    parts = spec.get("tasks") or spec["pytorchReplicaSpecs"].values()
    return [(part["replicas"], part["template"]["spec"]) for part in parts]


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_yaml_has_what_its_kind_requires_and_nothing_unknown(name):
    assert check(load(name), SCHEMAS[name]) == []


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_the_schemas_find_what_is_wrong(name):
    job = load(name)
    job["kind"] = "Jobs"
    job["spec"]["minAvailabel"] = 2
    del pods(job)[0][1]["containers"][0]["image"]
    problems = check(job, SCHEMAS[name])
    assert any(".kind: expected" in problem for problem in problems)
    assert ".spec.minAvailabel is unknown" in problems
    assert any(problem.endswith(".image is missing") for problem in problems)


@pytest.mark.parametrize("name, needed", [("pytorchjob.yaml", 30), ("volcano_ascend.yaml", 60)])
def test_a_pod_has_more_time_to_end_than_its_launcher_gives_the_ranks(name, needed):
    """Kubernetes' own 30 s would be over before torchrun or the harness has stopped waiting."""
    for _, pod in pods(load(name)):
        assert pod["terminationGracePeriodSeconds"] > needed


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_volume_that_is_mounted_exists(name):
    for _, pod in pods(load(name)):
        for container in pod["containers"]:
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_pytorchjob_calls_torchrun_with_options_that_train_py_has():
    job = load("pytorchjob.yaml")
    for _, pod in pods(job):
        (container,) = pod["containers"]
        assert container["name"] == "pytorch"  # the operator adds its variables to this one only
        assert container["command"][:2] == ["torchrun", "train.py"]
        cards = container["resources"]["limits"]["nvidia.com/gpu"]
        assert job["spec"]["nprocPerNode"] == str(cards)
        cfg = config.parse(options.train_parser(), [
            word.replace("configs/", f"{ROOT}/configs/") for word in container["command"][2:]])
        assert (cfg.resume, cfg.batch_size, cfg.scale_lr) == ("auto", 2048, 1024)
        ranks = sum(replicas for replicas, _ in pods(job)) * 8
        assert cfg.batch_size % ranks == 0


def test_volcano_job_calls_the_harness_on_as_many_nodes_as_it_asks_for(tmp_path):
    job = load("volcano_ascend.yaml")
    ((nodes, pod),) = pods(job)
    (container,) = pod["containers"]
    env = {item["name"]: item["value"] for item in container["env"]}
    assert nodes == job["spec"]["minAvailable"] == int(env["NODES"])
    name = job["metadata"]["name"]
    assert env["NODE_0"] == f"{name}-{job['spec']['tasks'][0]['name']}-0.{name}"
    limits = container["resources"]["limits"]
    assert limits == container["resources"]["requests"] == {"huawei.com/Ascend910": 8}
    # Its command, with a harness that prints its arguments.
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "train_full_16p.sh").write_text('printf "%s\\n" "$@"\n')
    done = subprocess.run([*container["command"], *container["args"]], cwd=str(tmp_path), text=True,
                          env=dict(os.environ, VK_TASK_INDEX="1", **env), capture_output=True)
    assert done.stdout.splitlines() == [
        "--device=npu", "--nnodes=2", "--node_rank=1", f"--master_addr={env['NODE_0']}",
        "--data_path=/data", "--output=/runs/mobilenetv3", "--resume=auto", "--",
        "--scale_lr=1024"], done.stderr


# ---- ModelArts


@pytest.fixture
def modelarts(tmp_path):
    """modelarts(arguments..., VARIABLE=value) -> the finished process, with a stub harness."""
    (tmp_path / "deploy").mkdir()
    (tmp_path / "test").mkdir()
    (tmp_path / "deploy" / "modelarts.py").write_text((DEPLOY / "modelarts.py").read_text())
    (tmp_path / "test" / "train_full_16p.sh").write_text(
        'printf "got %s\\n" "$@" "RANK_ID=${RANK_ID-}"\nexit 7\n')

    def run(*arguments, **variables):
        names = ("ASCEND_DEVICE_ID", "VC_WORKER_HOSTS", "VC_TASK_INDEX", "MA_NUM_HOSTS",
                 "MA_NUM_GPUS")
        env = {name: value for name, value in os.environ.items() if name not in names}
        return subprocess.run(
            [sys.executable, str(tmp_path / "deploy" / "modelarts.py"), *arguments],
            env=dict(env, **variables), capture_output=True, text=True)
    return run


def test_modelarts_tells_the_harness_its_place_and_data(modelarts):
    done = modelarts("--data_url=/in put", "--train_url", "/out", "--epochs=2", MA_NUM_HOSTS="2",
                     MA_NUM_GPUS="8", VC_WORKER_HOSTS="job-0.job,job-1.job", VC_TASK_INDEX="1",
                     ASCEND_DEVICE_ID="0", RANK_ID="8")
    assert done.returncode == 7  # the harness's
    assert re.findall(r"^got (.*)$", done.stdout, re.M) == [
        "--nnodes=2", "--nproc=8", "--node_rank=1", "--master_addr=job-0.job",
        "--data_path=/in put", "--output", "/out", "--epochs=2", "RANK_ID="]


def test_modelarts_signals_the_harness_itself(modelarts, tmp_path):
    """A start file that waited for the harness would die alone of SIGTERM, and leave it running."""
    (tmp_path / "test" / "train_full_16p.sh").write_text('echo "parent $PPID"\n')
    done = modelarts("--data_path=/in put")
    assert done.stdout.splitlines()[-1] == f"parent {os.getpid()}"
    assert "'--data_path=/in put'" in done.stdout.splitlines()[0]  # as a shell would take it


def test_modelarts_on_one_node_needs_no_addresses(modelarts):
    done = modelarts("--data_path=/in")
    assert re.findall(r"^got (--.*)$", done.stdout, re.M) == [
        "--nnodes=1", "--nproc=8", "--data_path=/in"]


def test_modelarts_starts_the_harness_once_a_node(modelarts):
    done = modelarts("--data_path=/in", ASCEND_DEVICE_ID="3")
    assert (done.returncode, done.stdout) == (0, "")


def test_modelarts_without_the_other_nodes_addresses_says_so(modelarts):
    done = modelarts(MA_NUM_HOSTS="2")
    assert done.returncode == 1
    assert done.stderr == ("modelarts.py: MA_NUM_HOSTS is 2, but VC_WORKER_HOSTS names 0 and "
                           "VC_TASK_INDEX is not set\n")


def test_importing_the_start_file_starts_nothing():
    spec = importlib.util.spec_from_file_location("modelarts", str(DEPLOY / "modelarts.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.renamed("--data_url=x=y") == "--data_path=x=y"
