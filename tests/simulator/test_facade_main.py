"""`python -m bert_ipu.simulator SCRIPT ARGS` runs an unmodified PopTorch program and its child processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bert_ipu.simulator.__main__ import main

PROJECT = Path(__file__).parents[2]

PROGRAM = """
import subprocess, sys
import popart, popdist, poptorch, poptorch.optim, torch
from poptorch.enums import OutputMode

assert sys.argv[1:] == ["--flag", "value"] and __name__ == "__main__"
assert poptorch.optim is sys.modules["poptorch.optim"] and OutputMode is poptorch.OutputMode
assert int(popart.SyntheticDataMode.RandomNormal) == 2 and popdist.getNumInstances() == 1
model = poptorch.inferenceModel(torch.nn.Linear(2, 2))
print("shape", tuple(model(torch.zeros(3, 2)).shape))
child = "import poptorch; print('child', poptorch.Options().device_iterations)"
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout)
"""


def _run(*arguments: str, folder: Path, given: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bert_ipu.simulator", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, timeout=120, input=given
    )


def test_an_unmodified_program_runs_with_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = _run("program.py", "--flag", "value", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "shape (3, 2)" in done.stdout and "child 1" in done.stdout


def test_a_missing_script_is_one_message_and_status_2(tmp_path: Path) -> None:
    done = _run("nowhere.py", folder=tmp_path)
    assert done.returncode == 2
    assert "'nowhere.py' does not exist" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-O", "program.py"], "options of Python stand before its -m"),
        (["folder"], "'folder' is a folder without a __main__.py"),
        (["-m", "nowhere.deep"], "There is no module 'nowhere.deep'"),
        (["-m", "folder/program"], "There is no module 'folder/program'"),
        (["-m", "..folder"], "There is no module '..folder'"),
        (["-m", "folder"], "'folder' is a package without a __main__ module"),
    ],
)
def test_nothing_to_run_is_named(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setenv("PYTHONPATH", "")
    assert main(arguments) == 2
    assert said in capsys.readouterr().err
    sys.modules.pop("folder", None)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("size=2", "'size' is none of numerics,"),
        ("numerics=x", "choose one of ipu, fast"),
        ("threads=a", "'a'"),
    ],
)
def test_a_wrong_environment_is_said_before_the_program_starts(
    value: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was found when a model was compiled, which may be hours later."""
    program = tmp_path / "program.py"
    program.write_text("raise SystemExit('started')")
    monkeypatch.setenv("BERT_IPU_SIMULATOR", value)
    assert main([str(program)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"The environment has BERT_IPU_SIMULATOR={value}: ") and said in message


@pytest.mark.parametrize("program", ["raise KeyError('mine')", "def f(:"])
def test_errors_of_a_program_are_shown_as_python_shows_them(program: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(program)
    plain = subprocess.run([sys.executable, "broken.py"], capture_output=True, text=True, cwd=tmp_path)
    ours = _run("broken.py", folder=tmp_path)
    assert ours.returncode == plain.returncode == 1
    assert ours.stderr.replace(str(tmp_path) + os.sep, "") == plain.stderr.replace(str(tmp_path) + os.sep, "")


FROM_NO_FILE = """
import pickle, sys, poptorch
class Own: pass
assert type(pickle.loads(pickle.dumps(Own()))) is Own and __name__ == "__main__"
print(sys.argv[1:], poptorch.Options().device_iterations)
"""


def test_a_program_can_come_from_standard_input_a_pipe_or_the_command_line(tmp_path: Path) -> None:
    """Of a pipe nothing was run: runpy reads a file twice."""
    for arguments in (["/dev/stdin"], ["-c", FROM_NO_FILE]):
        done = _run(*arguments, "more", folder=tmp_path, given=FROM_NO_FILE)
        assert done.stdout.strip() == "['more'] 1", done.stderr


LOADING = """
import multiprocessing, subprocess, sys
import poptorch, torch

def child(options):
    print("spawned", options.device_iterations, flush=True)

if __name__ == "__main__":
    options = poptorch.Options().deviceIterations(2)
    data = torch.utils.data.TensorDataset(torch.arange(8))
    loader = poptorch.DataLoader(options, data, batch_size=2, mode=poptorch.DataLoaderMode.Async)
    print("loaded", [batch.tolist() for (batch,) in loader], flush=True)
    process = multiprocessing.get_context("spawn").Process(target=child, args=(options,))
    process.start()
    process.join()
    command = "import poptorch; print('started', poptorch.Options().device_iterations)"
    subprocess.run([sys.executable, "-c", command], check=True)
"""


def test_the_installed_command_runs_beside_a_module_of_the_packages_name(tmp_path: Path) -> None:
    declared = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = declared["bert-ipu-simulator"].split(":")
    command, folder = tmp_path / "bin" / "bert-ipu-simulator", tmp_path / "examples"
    command.parent.mkdir()
    command.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")  # as pip's
    folder.mkdir()
    (folder / "program.py").write_text(LOADING)
    (folder / "bert_ipu.py").write_text("raise SystemExit('this is another bert_ipu')\n")
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, str(command), "program.py"]
    done = subprocess.run(run, capture_output=True, text=True, cwd=folder, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "loaded [[0, 1, 2, 3], [4, 5, 6, 7]]" in done.stdout
    assert "spawned 2" in done.stdout and "started 1" in done.stdout
