"""Files: safetensors for tensors and JSON for the rest, written whole or not at all, and never unpickled."""

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import FileError

__all__ = ["load_json", "load_tensors", "save_json", "save_tensors", "write_atomically"]


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Write `content` beside `path`, flush it to disk and rename it: a reader sees the old file or the new one, never half of one.

    Raises:
        FileError: the folder or the disk does not let it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        raise FileError(
            f"{path} cannot be written ({error.strerror or error}); check the folder and the free space."
        ) from error
    except BaseException:
        _remove(temporary)
        raise


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # where it could not be made, it cannot be removed
        path.unlink()


def save_json(path: str | os.PathLike, value: Any) -> None:
    """Write a JSON file atomically."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


def load_json(path: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        FileError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileError(f"there is no file {path}; check the folder's name.") from None
    except OSError as error:
        raise FileError(
            f"{path} cannot be read ({error.strerror or error}); check the folder's name and its permissions."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileError(f"{path} is not a whole JSON file ({error}); restore it or save the result again.") from None


def save_tensors(path: str | os.PathLike, tensors: dict[str, Tensor], notes: Any = None) -> None:
    """Write tensors, with JSON-able `notes` in the same file, atomically (one file cannot disagree with itself)."""
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(path, save(whole, metadata={"notes": json.dumps(notes)}))


def load_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], Any]:
    """Read what `save_tensors` wrote: the tensors on the CPU, and the notes.

    Raises:
        FileError: the file is missing, truncated, or not a safetensors file.
    """
    if not Path(path).is_file():
        raise FileError(f"there is no file {path}; check the folder's name.")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata.get("notes", "null"))  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise FileError(f"{path} is not a whole safetensors file ({error}); restore it from an earlier copy.") from None
