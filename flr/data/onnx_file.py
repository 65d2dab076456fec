"""Open .onnx files, which may come from anyone: nothing outside the file is read, and no code of it is run."""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime

from flr.errors import UserError
from flr.files import opened


class OnnxFile(NamedTuple):
    """An opened file: its session, its metadata as JSON, and the SHA-256 of its bytes."""

    session: onnxruntime.InferenceSession
    metadata: str
    digest: str


def open_onnx(
    path: Path, key: str, max_bytes: int, hint: str, threads: int = 0,
    providers: Sequence[Any] = ("CPUExecutionProvider",), fixed_shapes: bool = True,
) -> OnnxFile:  # fmt: skip
    """Load a file with ONNX Runtime.

    Args:
        path: The file.
        key: Of its metadata.
        max_bytes: A larger file is rejected.
        hint: What to do about a file that is rejected, for errors.
        threads: Threads of one run; 0 for one per core.
        providers: Execution providers.
        fixed_shapes: Whether most inputs have one shape, for which memory is planned.

    Raises:
        UserError: The file cannot be read or loaded, or has no such metadata.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are reported below
    options.intra_op_num_threads, options.enable_mem_pattern = threads, fixed_shapes
    # Threads that spin between two runs take the cores from decoding, drawing and the browser.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        with opened(path, max_bytes) as file:
            model = file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {hint}") from error
    with tempfile.TemporaryDirectory() as empty:  # the only folder that the file's references can reach
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", empty)
        try:
            session = onnxruntime.InferenceSession(model, options, providers=list(providers))
        except Exception as error:  # of a dozen classes without a common base
            raise UserError(f"{path}: ONNX Runtime does not load it ({error!s:.200}); {hint}") from error
    metadata = session.get_modelmeta().custom_metadata_map.get(key)
    if metadata is None:
        raise UserError(f"{path}: an .onnx file without the metadata {key}; {hint}")
    return OnnxFile(session, metadata, hashlib.sha256(model).hexdigest())
