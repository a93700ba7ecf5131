"""The set-up: `.venv` in the course folder, with what the requirement files name. Only the standard library is used.

`python -m tools.setup` does it once; the second time costs nothing. The other tools call `enter` at their start, which
makes the environment if need be and goes on inside it. To use another Python, one that has everything already, set
LLM_PYTHON to its path; or say --no-venv to stay with the one that is running. pip's own settings work here too, for
instance PIP_INDEX_URL, PIP_FIND_LINKS=/media/usb/wheels or PIP_NO_INDEX=1.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
OLDEST = (3, 11)
COURSE = "requirements.txt"
TESTS = "tests/requirements.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # PyTorch's own index of builds without CUDA
# where the module has another name; None: can be missing
IMPORTED_AS = {"scikit-learn": "sklearn", "pytest-xdist": "xdist", "latex2mathml": None}


class SetupError(Exception):
    """The environment cannot be made; the message says what to do."""


def python_of(folder):
    """The interpreter of a virtual environment."""
    folder = Path(folder)
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def check_python():
    if sys.version_info < OLDEST:
        raise SetupError(
            "This is Python {}; the course needs {}.{} or newer.\nIf a newer one is installed, name it: "
            "make run PYTHON=python3.12 (or: python3.12 -m tools.run)".format(platform.python_version(), *OLDEST))


def in_colab():
    return "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ


def make_venv(folder):
    """A new virtual environment in `folder`; one that is broken is made again. Does nothing to one that works."""
    if python_of(folder).exists():
        works = subprocess.run([str(python_of(folder)), "-m", "pip", "--version"], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
        if works.returncode == 0:
            return
        print("{} does not work any more and is made again".format(folder.name), flush=True)
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise SetupError("This Python cannot make virtual environments. On Debian and Ubuntu: "
                         "sudo apt install python3-venv")
    print("making {} with Python {}".format(folder.name, platform.python_version()), flush=True)
    done = subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)])
    if done.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        raise SetupError("The virtual environment could not be made in {} (see above).".format(folder))


def fingerprint(files):
    """What an installation depends on: the text of the requirement files."""
    return {name: hashlib.sha256((ROOT / name).read_bytes().replace(b"\r\n", b"\n")).hexdigest() for name in files}


def stamp_of(folder):
    return Path(folder) / "installed.json"


def stamped(folder):
    """The fingerprints of what was installed into `folder`; none where the note is missing or damaged."""
    try:
        return dict(json.loads(stamp_of(folder).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def is_installed(folder, files):
    """Whether `folder` was completely installed from these files as they are now."""
    return python_of(folder).exists() and fingerprint(files).items() <= stamped(folder).items()


def stamp(folder, files):
    """Note that these files are installed, and what was noted before."""
    from shared.files import write_atomically  # not above: this module must start in a Python that is too old

    with write_atomically(stamp_of(folder)) as part:
        part.write_text(json.dumps({**stamped(folder), **fingerprint(files)}, indent=1), encoding="utf-8")


def pip(folder, *arguments):
    quiet = [] if sys.stdout.isatty() else ["-qq"]  # a person sees what is being fetched, a log does not grow
    command = [str(python_of(folder)), "-m", "pip", "install", "--disable-pip-version-check", *quiet, *arguments]
    return subprocess.run(command, cwd=ROOT).returncode


def wants_cpu_torch():
    """Linux without an NVIDIA GPU: there the default torch brings two gigabytes of CUDA libraries for nothing."""
    return (platform.system() == "Linux" and platform.machine().lower() in ("x86_64", "aarch64")
            and shutil.which("nvidia-smi") is None and not Path("/proc/driver/nvidia").exists())


def torch_requirement():
    """The line of requirements.txt that names torch, such as `torch>=2.9,<2.14`."""
    lines = (ROOT / COURSE).read_text(encoding="utf-8").splitlines()
    return next(line.strip() for line in lines if re.match(r"torch\b", line))


def has_torch(folder):
    code = "import importlib.metadata as m; m.version('torch')"
    return subprocess.run([str(python_of(folder)), "-c", code], stderr=subprocess.DEVNULL).returncode == 0


def install(folder, files):
    """Install the requirement files into the environment `folder`."""
    if wants_cpu_torch() and not has_torch(folder):
        print("no NVIDIA GPU here: a build of torch for the CPU is tried first", flush=True)
        quick = ["--no-deps", "--retries", "0", "--timeout", "8"]  # its dependencies come with the rest
        if pip(folder, *quick, "--index-url", CPU_INDEX, torch_requirement()):
            print("not to be had there: pip takes what it finds elsewhere", flush=True)
    print("installing {} (a few minutes the first time)".format(" and ".join(files)), flush=True)
    if pip(folder, *[part for name in files for part in ("-r", name)]):
        raise SetupError("pip could not install everything; its own words stand above. Without network, point pip at "
                         "a folder of wheels: PIP_NO_INDEX=1 PIP_FIND_LINKS=/path/to/wheels. Then start again: "
                         "what is installed already is kept.")
    stamp(folder, files)


def ensure(files=(COURSE,)):
    """Make and fill `.venv` unless that is done; returns its interpreter. Raises SetupError."""
    check_python()
    if not is_installed(VENV, files):
        make_venv(VENV)
        install(VENV, files)
    return python_of(VENV)


def missing_modules(files):
    """Distributions of the requirement files that this interpreter cannot import."""
    missing = []
    for name in files:
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            found = re.match(r"[A-Za-z0-9_.-]+", line)
            module = IMPORTED_AS.get(found.group(), found.group().replace("-", "_")) if found else None
            if module and importlib.util.find_spec(module) is None:
                missing.append(found.group())
    return missing


def is_same(one, other):
    """Whether two paths are the same interpreter in the same environment (a venv's python is often a link)."""
    return os.path.normcase(os.path.abspath(str(one))) == os.path.normcase(os.path.abspath(str(other)))


def enter(module, arguments, files=(COURSE,)):
    """Go on in an environment that has the requirement files: returns the arguments left, or runs `module` there.

    Where this process is not in the right environment, a new one runs `python -m module arguments`, and this one ends
    with its exit status. `--no-venv` among the arguments, LLM_PYTHON or Colab keep out of `.venv`.
    """
    wanted = os.environ.get("LLM_PYTHON")
    stay = "--no-venv" in arguments or in_colab() or (wanted and is_same(wanted, sys.executable))
    rest = [a for a in arguments if a != "--no-venv"]
    try:
        if stay:
            check_python()
            missing = missing_modules(files)
            if missing:
                raise SetupError("{} lacks: {}".format(sys.executable, " ".join(missing)))
            return rest
        if wanted and not shutil.which(wanted):
            raise SetupError("LLM_PYTHON is {!r}, which is no program here".format(wanted))
        python = Path(wanted) if wanted else ensure(files)
    except SetupError as error:
        sys.exit("set-up: {}".format(error))
    if is_same(python, sys.executable):
        return rest
    environment = dict(os.environ, PYTHONUTF8="1")
    process = subprocess.Popen([str(python), "-m", module, *rest], cwd=ROOT, env=environment)
    while True:
        try:
            sys.exit(process.wait())
        except KeyboardInterrupt:  # the child got it too, and says goodbye itself
            continue


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tools.setup", allow_abbrev=False, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", action="store_true", help="also what the tests need")
    options = parser.parse_args(arguments)
    try:
        python = ensure((COURSE, TESTS) if options.tests else (COURSE,))
    except SetupError as error:
        sys.exit("set-up: {}".format(error))
    print("ready: {}".format(python))


if __name__ == "__main__":
    main()
