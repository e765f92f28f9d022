"""test/env_npu.sh, on trees that look like CANN's."""
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mobilenetv3 import host

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "test" / "env_npu.sh"

pytestmark = [
    pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash"),
    pytest.mark.skipif(
        bool(os.path.exists("/etc/Ascend") or os.path.exists("/usr/local/Ascend")),
        reason="this host has a CANN, which would be found",
    ),
]

# In the manner of CANN's: reads what is not set, prints, and lets the last command fail.
SET_ENV = """
home=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
echo "words of CANN, arguments: $#"
export ASCEND_HOME_PATH=$home ASCEND_TOOLKIT_HOME=$home
export LD_LIBRARY_PATH=$home/lib64:$LD_LIBRARY_PATH
export PYTHONPATH=$home/python/site-packages:$PYTHONPATH
export PATH=$home/bin:$PATH
[ -d /nowhere ]
"""


def cann(folder, edition="cann", text=SET_ENV):
    """Make a CANN below a folder; returns its home."""
    home = folder / edition
    (home / "lib64").mkdir(parents=True)
    (home / "set_env.sh").write_text(text)
    return home


@pytest.fixture
def source(tmp_path):
    """Source the script as the harness does; returns the environment and the output."""
    def run(before="", after="", **variables):
        env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "my home"), **variables}
        program = f'set -euo pipefail\n{before}\n. "$0"\n{after}\nenv -0'
        done = subprocess.run(["bash", "-c", program, str(SCRIPT), "an argument"], env=env,
                              cwd=str(tmp_path), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        out, _, rest = done.stdout.partition("\0")
        *lines, first = out.split("\n")
        pairs = [first, *filter(None, rest.split("\0"))]
        return dict(pair.split("=", 1) for pair in pairs), lines, done.stderr
    return run


def of_ascend(env):
    return {name for name in env if name.startswith(("ASCEND", "HCCL", "CPU_AFF", "TASK_QUEUE"))}


def test_without_cann_nothing_happens(source):
    env, lines, err = source()
    assert not of_ascend(env)
    assert "LD_LIBRARY_PATH" not in env
    assert lines == []
    assert err == "" or "/dev/davinci" not in err


def test_cann_is_sourced_from_a_path_with_spaces(source, tmp_path):
    home = cann(tmp_path / "a $(strange) \"place\"")
    env, lines, err = source(ASCEND_HOME=str(home.parent))
    assert lines == [f"CANN: {home}/set_env.sh"]
    assert "words of CANN, arguments: 0\n" in err  # its prints stay out of the results
    assert env["ASCEND_HOME_PATH"] == str(home)
    assert env["PATH"].startswith(f"{home}/bin:")


def test_no_empty_entry_lets_the_current_folder_in(source, tmp_path):
    """CANN's script appends the old value behind a colon, also where there was none."""
    home = cann(tmp_path / "x")
    env, _, _ = source(ASCEND_HOME=str(tmp_path / "x"))
    assert env["LD_LIBRARY_PATH"] == f"{home}/lib64"
    assert env["PYTHONPATH"] == f"{home}/python/site-packages"
    env, _, _ = source(ASCEND_HOME=str(tmp_path / "x"), LD_LIBRARY_PATH="/a", PYTHONPATH="/b:")
    assert env["LD_LIBRARY_PATH"] == f"{home}/lib64:/a"
    assert env["PYTHONPATH"] == f"{home}/python/site-packages:/b:"  # as the user has it


@pytest.mark.parametrize("text", ["set -e\nfalse\n", "exit 3\n", "echo $UNSET_VARIABLE\n",
                                  "return 1\n"])
def test_a_script_of_cann_that_breaks_off_does_not_end_the_harness(source, tmp_path, text):
    home = cann(tmp_path / "x", text=SET_ENV + text + "export TOO_LATE=1\n")
    env, _, _ = source(ASCEND_HOME=str(tmp_path / "x"))
    assert env["ASCEND_HOME_PATH"] == str(home)
    assert env["TASK_QUEUE_ENABLE"] == "2"


def test_the_shell_is_left_as_it_was(source, tmp_path):
    cann(tmp_path / "x")
    env, lines, _ = source(
        before="before=$-$(shopt -po pipefail); functions=$(declare -F)",
        after='[[ $before == "$-$(shopt -po pipefail)" && $functions == "$(declare -F)" ]]; '
              'echo "${script-unset} ${home-unset} ${name-unset}"',
        ASCEND_HOME=str(tmp_path / "x"),
    )
    assert lines[-1] == "unset unset unset"


def test_documented_variables_get_values(source, tmp_path):
    cann(tmp_path / "x")
    env, _, _ = source(ASCEND_HOME=str(tmp_path / "x"))
    assert env["TASK_QUEUE_ENABLE"] == "2"
    assert env["ASCEND_GLOBAL_LOG_LEVEL"] == "3"
    # HCCL's limits stay below the 1800 s of the process group, whose message names no peer; on
    # older chips the second is rounded down to a multiple of 68 s.
    assert 120 < int(env["HCCL_CONNECT_TIMEOUT"]) < 1800
    assert int(env["HCCL_EXEC_TIMEOUT"]) < 1800
    assert int(env["HCCL_EXEC_TIMEOUT"]) % 68 == 0
    assert "CPU_AFFINITY_CONF" not in env  # a single rank may load its data on all CPUs


def test_several_ranks_keep_to_their_cpus_but_leave_the_hosts_interrupts_alone(source, tmp_path):
    cann(tmp_path / "x")
    env, _, _ = source(before="ranks=8", ASCEND_HOME=str(tmp_path / "x"))
    assert env["CPU_AFFINITY_CONF"] == "1,bind_irq:0"


def test_what_the_user_has_set_stays(source, tmp_path):
    cann(tmp_path / "x")
    own = {"TASK_QUEUE_ENABLE": "0", "CPU_AFFINITY_CONF": "", "HCCL_CONNECT_TIMEOUT": "7200",
           "HCCL_EXEC_TIMEOUT": "68", "ASCEND_GLOBAL_LOG_LEVEL": "1"}
    env, _, _ = source(before="ranks=8", ASCEND_HOME=str(tmp_path / "x"), **own)
    assert {name: env[name] for name in own} == own


def test_a_cann_in_use_is_not_sourced_again(source, tmp_path):
    home = cann(tmp_path / "x")
    cann(tmp_path / "other")
    env, lines, err = source(ASCEND_HOME_PATH=str(home), LD_LIBRARY_PATH=f"/a:{home}/lib64",
                             ASCEND_HOME=str(tmp_path / "other"))
    assert (lines, err) == ([], "")
    assert env["LD_LIBRARY_PATH"] == f"/a:{home}/lib64"
    assert env["TASK_QUEUE_ENABLE"] == "2"  # the variables are set all the same


def test_a_home_without_its_libraries_in_the_path_is_sourced(source, tmp_path):
    home = cann(tmp_path / "x")
    env, lines, _ = source(ASCEND_HOME_PATH=str(home), LD_LIBRARY_PATH="/a")
    assert lines == [f"CANN: {home}/set_env.sh"]
    assert env["LD_LIBRARY_PATH"] == f"{home}/lib64:/a"


def test_it_is_skipped_on_request(source, tmp_path):
    cann(tmp_path / "x")
    env, lines, _ = source(ASCEND_HOME=str(tmp_path / "x"), etp_running_flag="true")
    assert of_ascend(env) == {"ASCEND_HOME"}
    assert lines == []


def test_shell_and_python_find_the_same_cann(source, tmp_path, monkeypatch):
    """The places are written down twice; here they are compared on every kind of them."""
    home = tmp_path / "my home"
    found = []

    def compare(**variables):
        for name in (*host.HOME_VARIABLES, "LD_LIBRARY_PATH"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("HOME", str(home))
        _, lines, _ = source(**{name: str(value) for name, value in variables.items()})
        found.append(host.cann_script())
        assert lines == ([f"CANN: {found[-1]}"] if found[-1] else [])

    compare()
    for edition in ("nnae", "ascend-toolkit", "cann"):  # each wins over those before it
        cann(home / "Ascend", edition)
        compare()
    latest = cann(tmp_path / "opt" / "ascend-toolkit", "8.0.0")
    (latest / "set_env.sh").rename(latest.parent / "set_env.sh")
    (home / "Ascend" / "ascend_cann_install.info").write_text(
        f"other={tmp_path}\nToolkit_InstallPath={latest}\r\n")
    compare()
    compare(ASCEND_HOME=cann(tmp_path / "a"))
    compare(ASCEND_HOME=tmp_path / "a", ASCEND_HOME_PATH=str(cann(tmp_path / "b")) + "/")
    compare(ASCEND_TOOLKIT_HOME=tmp_path / "gone", ASCEND_HOME_PATH=tmp_path / "gone too")
    assert len(set(found)) == 7  # nothing, three editions, the record, two variables
    assert found[-1] == found[4]  # variables that point nowhere are passed over


def test_a_record_without_a_final_newline_is_read_to_its_end(source, tmp_path):
    home = cann(tmp_path / "x")
    record = tmp_path / "my home" / "Ascend" / "ascend_cann_install.info"
    record.parent.mkdir(parents=True)
    record.write_text(f"Install_Path={home.parent}")
    _, lines, _ = source()
    assert lines == [f"CANN: {home}/set_env.sh"]
