"""An ONNX file with the normalisation in it and a dynamic batch, for onnxruntime."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch

from wcl_ray.export import Loaded, TrainedEncoder, needs_extra, with_normalisation
from wcl_ray.registry import EXPORTS

FILE = "encoder.onnx"


@EXPORTS.add("onnx")
def export(encoder: TrainedEncoder, folder: Path) -> Loaded:
    """Input ``images``: RGB float32 (batch, 3, s, s) in [0, 1]; output ``features`` (batch, F). The
    file's metadata say so, too."""
    with needs_extra():
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # torch.onnx needs it
    path = str(folder / FILE)
    example = torch.rand(2, 3, encoder.image_size, encoder.image_size)
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                with_normalisation(encoder),
                (example,),
                path,
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    finally:
        log.setLevel(level)
    model = onnx.load(path)
    facts = {"input": encoder.input, "backbone": encoder.name, **encoder.facts}
    onnx.helper.set_model_props(model, {key: str(value) for key, value in facts.items()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return Loaded(
        lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]),
        encoder.input,
    )
