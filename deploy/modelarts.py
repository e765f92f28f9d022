"""Start file of a ModelArts training job: calls the harness in test/ with the job's place and data.

Choose this file as the boot file and the package as the code folder. The hyperparameters are what
test/train_full_16p.sh takes, for example --batch_size, --epochs and --max_restarts; the job's input
is --data_url or --data_path, its output --train_url or --output. On several nodes the output must
be a folder that all of them see.

ModelArts says through VC_WORKER_HOSTS, VC_TASK_INDEX, MA_NUM_HOSTS and MA_NUM_GPUS which nodes
there are. Its Ascend engine starts this file once a card; only the start for the first card of a
node does anything, because the harness starts the other ranks. A job that ModelArts ends saves a
checkpoint first, and --resume=auto goes on from it.
"""
import os
import shlex
import sys

HARNESS = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, "test")
NAMES = {"--data_url": "--data_path", "--train_url": "--output"}  # ModelArts' and the harness's


def renamed(argument):
    """An argument under the harness's name for it."""
    name, equals, value = argument.partition("=")
    return NAMES.get(name, name) + equals + value


def place(env):
    """The harness's arguments about nodes and cards, from the job's environment."""
    nodes = int(env.get("MA_NUM_HOSTS") or 1)
    cards = int(env.get("MA_NUM_GPUS") or 8)
    hosts = [host for host in env.get("VC_WORKER_HOSTS", "").split(",") if host]
    arguments = [f"--nnodes={nodes}", f"--nproc={cards}"]
    if nodes > 1:
        if len(hosts) != nodes or "VC_TASK_INDEX" not in env:
            sys.exit(f"modelarts.py: MA_NUM_HOSTS is {nodes}, but VC_WORKER_HOSTS names "
                     f"{len(hosts)} and VC_TASK_INDEX is {env.get('VC_TASK_INDEX', 'not set')}")
        arguments += [f"--node_rank={env['VC_TASK_INDEX']}", f"--master_addr={hosts[0]}"]
    return arguments


def main():
    if os.environ.get("ASCEND_DEVICE_ID", "0") != "0":
        return 0
    given = [renamed(argument) for argument in sys.argv[1:]]
    command = ["bash", os.path.join(HARNESS, "train_full_16p.sh"), *place(os.environ), *given]
    print("+", *map(shlex.quote, command), flush=True)
    # What the engine sets is about one rank of its own way of starting.
    env = {name: value for name, value in os.environ.items()
           if name not in ("ASCEND_DEVICE_ID", "RANK_ID", "RANK_SIZE", "RANK_TABLE_FILE")}
    # In the place of this process, so that the SIGTERM before a job's end reaches the harness.
    os.execvpe(command[0], command, env)


if __name__ == "__main__":
    sys.exit(main())
