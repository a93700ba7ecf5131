"""Settings that cannot be are told in one line, before a lesson begins."""

import os

from tools import notebooks


def check_settings():
    """Raise ValueError, in one line, for a setting that cannot be. Nothing has run yet."""
    from shared import runtime

    runtime.describe()  # device, number format and scale
    check_paths()


def check_paths():
    """Raise ValueError, in one line, where LLM_TEXT or LLM_BASE names what is not there or cannot be read."""
    for name in ("LLM_TEXT", "LLM_BASE"):
        value = os.environ.get(name, "").strip()
        path = notebooks.ROOT / os.path.expanduser(value)  # a home that is not there is no error
        try:
            if name == "LLM_BASE" and value not in ("", "smollm2"):  # not a folder but a model known by this name
                from shared import checkpoints  # PyTorch is loaded only where it is needed

                checkpoints.open_folder(path)
            elif name == "LLM_TEXT" and value and not path.read_text(encoding="utf-8-sig").strip():
                raise ValueError(f"{path} is empty")
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}: {path} is not in UTF-8, in which it must be saved ({error})") from None
        except OSError as error:
            reason = f"{path}: {error.strerror}" if error.strerror else error
            raise ValueError(f"{name}: {reason}") from None
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
