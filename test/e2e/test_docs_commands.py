"""Every command of README and docs, taken out of the pages, runs; a translation has the same ones.

A command runs in a folder that has what the pages name: DIR is a small set, FILE a checkpoint,
cat.jpg a photograph. Training of hundreds of epochs is shortened by options that are appended
(docs_commands.SHORTER). Of a command for several ranks the launcher's options are read by
torchrun's own parser, and the script runs as one rank: other files test eight. The shell scripts
run with two ranks around a stub of train.py, which writes down what it was given; train.py's parser
reads that.
"""
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import docs_commands
import pytest
import torch
from docs_commands import PAGES, ROOT, commands, exception, parts, variants
from harness_stub import Tree, finish
from PIL import Image

from mobilenetv3 import config, convert, create_model, options
from mobilenetv3.data import prepare
from mobilenetv3.device import version

HERE = Path(__file__).resolve().parent

COMMANDS = list(dict.fromkeys(
    variant for page in PAGES for command in commands(page) for variant in variants(command)))
NOT_RUN = [command for command in COMMANDS if exception(command)]
SHELL = [command for command in COMMANDS
         if command.startswith("bash test/") and command not in NOT_RUN]
RUN = [command for command in COMMANDS if command not in SHELL and command not in NOT_RUN]
OLD = version(torch.__version__) < (2, 1)
WORDS = {"NAME": "mobilenetv3_small_100", "RUN...": "RUN"}
SCRIPTS = ("train.py", "validate.py", "predict.py", "export.py")


# ---- What the pages name


def photograph(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((48, 40), 20 + number).convert("RGB").save(path, "JPEG")


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A folder with all that commands read."""
    folder = tmp_path_factory.mktemp("named")
    for number in range(16):
        photograph(folder / "DIR" / "train" / f"class{number % 2}" / f"{number}.jpg", number)
    for number in range(4):
        photograph(folder / "DIR" / "val" / f"class{number % 2}" / f"{number}.jpg", 30 + number)
        photograph(folder / "photos" / f"{number}.jpg", 40 + number)
    photograph(folder / "cat.jpg", 50)
    (folder / "FILE.yaml").write_text("model: mobilenetv3_small_100\n")
    shutil.copytree(str(folder / "DIR"), str(folder / "imagenet"))
    prepare.main(prepare.parser().parse_args(
        [str(folder / "DIR"), str(folder / "imagenet-256"), "--workers", "0"]))
    weigh(folder)
    return folder


def weigh(folder):
    """Write the files of weights: networks of DIR's two classes, by the names of their families."""
    torch.manual_seed(0)
    for arch, families in {
        "mobilenetv3_small_100": {
            None: ("FILE", "model_best.pth.tar", "checkpoint.pth", "A.pth", "B.pth",
                   "C.pth", "B.safetensors"),
            "mindcv": ("best.ckpt", "C.ckpt"), "torchvision": ("mobilenet_v3_small.pth",),
            "mmpretrain": ("mobilenet-v3-small.pth",)},
        "mobilenetv3_large_100": {None: ("large.pth",), "torchvision": ("mobilenet_v3_large.pth",)},
        "xiaolai2019_mobilenetv3_small": {None: ("mbv3_small.pth.tar",)},
    }.items():
        plain = folder / "plain.pth"
        torch.save(create_model(arch, num_classes=2).state_dict(), str(plain))
        weights = convert.read(str(plain))
        for family, names in families.items():
            for name in names:
                path = folder / name
                convert.save(weights, str(path if path.suffix else plain), to=family)
                if not path.suffix:
                    plain.rename(path)


@pytest.fixture(scope="module")
def run_folder(named, tmp_path_factory, warm, environment):
    """RUN, the folder of a run of five epochs, each of which was better than the one before."""
    folder = tmp_path_factory.mktemp("run") / "RUN"
    _, words = shortened(f"python train.py {named / 'DIR'} --model mobilenetv3_small_050 "
                         f"--output {folder} --keep_every 1")
    subprocess.run([warm({}), *words, "--max_steps", "10"], cwd=str(ROOT), env=environment,
                   check=True, timeout=300, stdout=subprocess.DEVNULL)
    metrics = folder / "metrics.jsonl"
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert len(records) == 5
    metrics.write_text("".join(
        json.dumps(dict(record, val_acc1=50.0 + record["epoch"])) + "\n" for record in records))
    return folder


@pytest.fixture
def work(named, tmp_path):
    """The package's folder with what the pages name, for one command."""
    for source in (named, ROOT):
        for path in source.iterdir():
            if not path.name.startswith(".") and path.name not in ("output", "shared"):
                (tmp_path / path.name).symlink_to(path)
    return tmp_path


def fit(work, command):
    """Change what lies in the folder to what this command speaks of."""
    if "--val_labels" in command:  # validation images in one folder
        (work / "DIR").unlink()
        shutil.copytree(str(work / "imagenet" / "train"), str(work / "DIR" / "train"))
        (work / "DIR" / "val").mkdir()
        lines = []
        for path in sorted((work / "imagenet" / "val").glob("*/*.jpg")):
            shutil.copy(str(path), str(work / "DIR" / "val"))
            lines.append(f"{path.name} {path.parent.name}\n")
        (work / "val.txt").write_text("".join(lines))
    for program in ("mobilenetv3.convert", "mobilenetv3.data.prepare"):
        made = re.search(rf"{program} \S+ (\w\S*)", command)
        if made and (work / made.group(1)).is_symlink():
            (work / made.group(1)).unlink()


# ---- Commands that run


def shortened(command):
    """The launcher's options, and the words after `python` with what is appended."""
    launcher, is_module, program, arguments = parts(command)
    more = docs_commands.shorter(command)
    if program in ("train.py", "validate.py") and OLD:
        more.append("--apex=false")  # half precision on the CPU needs PyTorch 2.1
    arguments = [WORDS.get(word, word) for word in arguments] + more
    if program == "mobilenetv3.convert" and "DST" in arguments:
        arguments[1] = "new.ckpt" if "mindcv" in arguments else "new.pth"
    if "--help" in arguments:
        arguments = ["--help"]
    return launcher, ["-m"] * is_module + [program] + arguments


@pytest.mark.parametrize("command", RUN)
def test_a_command_of_the_pages_runs(command, work, run_folder, warm, environment):
    launcher, words = shortened(command)
    if launcher:
        understand_launcher(launcher)
    fit(work, command)
    if re.search(r"report RUN|average RUN|RUN/", command):
        shutil.copytree(str(run_folder), str(work / "RUN"))
    before = {path.name for path in work.iterdir()}
    done = subprocess.run([warm({}), *words], cwd=str(work), env=environment, timeout=300,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
    made = {path.name for path in work.iterdir()} - before
    if "mobilenetv3.convert" in command and len(shlex.split(command)) > 4:
        assert len(made) == 1
    if "--dry_run" in words:
        assert not made
    elif words[0] == "train.py" and "--help" not in words:
        assert made & {"output", "RUN"}
        assert "--lr_find" in words or " * Acc@1 " in done.stdout


def understand_launcher(words):
    """Read torchrun's options as torchrun does."""
    run = pytest.importorskip("torch.distributed.run", reason="torchrun came with PyTorch 1.9")
    run.get_args_parser().parse_args([*words, "train.py"])


# ---- The shell scripts


@pytest.fixture
def scripts(tmp_path, warm, environment):
    """Copies of the package with a stub of train.py: one for each of two nodes."""
    trees = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        trees.append(Tree(tmp_path / name))
    variables = dict(environment, PYTHON=warm({}), MNV3_CHECKED_PYTHON=warm({}))

    def start(tree, command, *appended):
        words = shlex.split(command)[1:]
        at = words.index("--") if "--" in words else len(words)
        words[at:at] = appended
        return tree.start(Path(words[0]).name, *words[1:], **variables)
    return trees, start


@pytest.mark.parametrize("command", [each for each in SHELL if "run_tests" in each])
def test_a_command_that_runs_tests_finds_them(command, environment):
    words = shlex.split(command)
    if len(words) == 2:  # all of them
        words.append("test/unit/test_logfmt.py")
    done = subprocess.run(
        [*words, "--collect-only", "-q", "-n", "0"], cwd=str(ROOT), timeout=300, text=True,
        env=dict(environment, PYTHON=sys.executable, MNV3_CHECKED_PYTHON=sys.executable),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    assert f"{words[2]}::test_" in done.stdout


ONE_NODE = [command for command in SHELL if "16p" not in command and "run_tests" not in command]
TWO_NODES = [command for command in SHELL if "16p" in command]


@pytest.mark.parametrize("command", ONE_NODE)
def test_a_shell_command_of_the_pages_starts_what_it_says(command, scripts):
    (tree, _), start = scripts
    done = finish(start(tree, command, *["--nproc=2"] * ("8p" in command)))
    assert done.returncode == 0, done.stderr
    assert "Final result" in done.stdout
    understand_call(tree, command)


def understand_call(tree, command):
    """Read what the stub was given as train.py and validate.py would; it is what was typed."""
    call = tree.call()
    script, *given = [word.replace(str(tree.root), str(ROOT)) for word in call["argv"]]
    parser = options.validate_parser() if script.endswith("validate.py") else options.train_parser()
    assert Path(script).name in SCRIPTS
    chosen = config.parse(parser, given)
    typed = dict(re.findall(r"--(\w+)[= ](\S+)", command))
    for name in ("epochs", "batch_size", "data_path", "aa"):
        if name in typed:
            assert str(getattr(chosen, name)) == typed[name]
    return chosen


@pytest.fixture
def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_commands_of_two_nodes_meet_and_train(scripts, free_port):
    trees, start = scripts
    plain = [command for command in TWO_NODES if "--conf_path" not in command]
    assert [re.search(r"--node_rank=(\d)", command).group(1) for command in plain] == ["0", "1"]
    meet(trees, start, [command.replace("10.0.0.1", "127.0.0.1") for command in plain],
         "--nproc=1", free_port)
    assert understand_call(trees[0], plain[0]).batch_size == 2048


def test_a_command_of_two_nodes_as_modelzoo_gives_them(scripts, tmp_path, free_port):
    trees, start = scripts
    (command,) = [command for command in TWO_NODES if "--conf_path" in command]
    conf = tmp_path / "conf"
    conf.mkdir()
    for number in range(2):
        (conf / f"server_127.0.0.{number + 1}_{number}.info").touch()
    first = command.replace("10.0.0.1", "127.0.0.1").replace("CONF", str(conf))
    second = first.replace("127.0.0.1", "127.0.0.2").replace("server_index=0", "server_index=1")
    meet(trees, start, [first, second], "--devicesnum=0", free_port)
    assert understand_call(trees[0], command).batch_size == 2048


def meet(trees, start, commands, one_rank, port):
    """Start a command on each node, as one rank."""
    pytest.importorskip("torch.distributed.run", reason="torchrun came with PyTorch 1.9")
    both = [start(tree, command, one_rank, f"--master_port={port}")
            for tree, command in zip(trees, commands)]
    ended = [finish(each) for each in both]
    assert [each.returncode for each in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    assert "Final result" in ended[0].stdout and "Final result" not in ended[1].stdout


# ---- Commands that are not run


def check_words(words):
    assert words


def check_pip(words):
    for word in words[words.index("install") + 1:]:
        if word.endswith(".txt"):
            assert (ROOT / word).is_file()
    assert len(words) > words.index("install") + 1


def check_pytest(words):
    paths = [word for word in words[3:] if word.startswith("test/")]
    assert paths
    text = ""
    for path in paths:
        assert (ROOT / path).exists(), path
        files = [ROOT / path] if path.endswith(".py") else (ROOT / path).rglob("test_*.py")
        text += "".join(f"{file.name}\n{file.read_text(encoding='utf-8')}" for file in files)
    if "-k" in words:
        word = words[words.index("-k") + 1]
        assert re.search(rf"(?m)^def test_\w*{word}|test_\w*{word}\w*\.py", text)


CHECKS = {"words": check_words, "pip": check_pip, "pytest": check_pytest}


@pytest.mark.parametrize("command", NOT_RUN)
def test_a_command_that_is_not_run_could_be(command, work, warm, environment):
    rule = exception(command)
    assert rule.reason
    if rule.check != "parser":
        CHECKS[rule.check](shlex.split(command))
        return
    launcher, is_module, program, arguments = parts(command)
    if launcher:
        understand_launcher(launcher)
    done = subprocess.run(
        [warm({}), str(HERE / "parse_only.py"), *["-m"] * is_module, program, *arguments],
        cwd=str(work), env=environment, timeout=300, text=True, capture_output=True)
    assert (done.returncode, done.stdout) == (0, "parsed\n"), done.stderr


# ---- The pages


def test_every_exception_is_needed():
    for rule in docs_commands.EXCEPTIONS:
        assert any(re.match(rule.pattern, command) for command in COMMANDS), rule.pattern


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_translation_has_the_same_commands(page):
    other = page.with_name(page.name.replace(".md", ".zh-CN.md"))
    if not other.exists():
        pytest.skip(f"{page.name} is not translated")
    assert sorted(commands(other)) == sorted(commands(page))


def test_commands_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("""# T
```bash
# nothing
python a.py --x 'b c' \\
    --y    # comment
```
1. item:

   ```bash
   bash test/x.sh
   ```

```
$ python -m m
no command
```

    torchrun b.py   # c
    RUN/file         text

and `python\ntrain.py --help` or `--help` and `python`.
""")
    assert commands(page) == ["python a.py --x 'b c' --y", "bash test/x.sh", "python -m m",
                              "torchrun b.py", "python train.py --help"]
    assert variants("python x --to a|b") == ["python x --to a", "python x --to b"]
    with pytest.raises(ValueError, match="no rule"):
        parts("ruby x.rb")
