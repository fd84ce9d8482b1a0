"""ONNX in float32, float16 and int8: written by torch's exporter, run by onnxruntime on the CPU."""

import contextlib
import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deploy.context import ExportContext, Runner
from deploy.rewrite import for_deployment, without_prelu

OPSET = 18


def write_onnx(network: nn.Module, path: Path, context: ExportContext) -> None:
    """Writes ONNX with the input "image" and the output "sr"; height and width are free."""
    if "onnx" not in context.cache:
        context.cache["onnx"] = _onnx(network, context)
    path.write_bytes(context.cache["onnx"])


def _onnx(network: nn.Module, context: ExportContext) -> bytes:
    import onnx

    network = without_prelu(for_deployment(network))
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns about its own parts
        program = torch.onnx.export(
            network,
            (context.example,),
            dynamo=True,
            dynamic_shapes=context.dynamic_shapes(),
            input_names=["image"],
            output_names=["sr"],
            opset_version=OPSET,
            verbose=False,
        )
    model = program.model_proto
    for name, value in _metadata(network, context).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _metadata(network: nn.Module, context: ExportContext) -> dict[str, str]:
    """The input's description and, for this framework's networks, the hyper-parameters."""
    shape = getattr(network, "hyperparameters", None)
    return {"input": context.description} | ({} if shape is None else {"hyperparameters": json.dumps(shape)})


def write_onnx_fp16(network: nn.Module, path: Path, context: ExportContext) -> None:
    """Writes ONNX with weights and arithmetic in float16; input, output and the attention's statistics stay float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    write_onnx(network, path, context)
    model = onnx.load(path)
    float32_operators = ["ReduceMean", "GlobalAveragePool", "Pow", "Sqrt"]
    model = convert_float_to_float16(
        model, keep_io_types=True, op_block_list=float32_operators, node_block_list=_squares(model.graph)
    )
    mixed = OnnxModel(model)
    mixed.remove_cascaded_cast_nodes()  # else float32 operators hand their results to each other in float16
    onnx.save(mixed.model, path)


def _squares(graph: Any) -> list[str]:
    """The names of the nodes of an ONNX graph that compute deviations and their squares, which overflow float16."""
    made_by = {output: node for node in graph.node for output in node.output}
    names = []
    for mean in (node for node in graph.node if node.op_type == "ReduceMean"):
        square = made_by.get(mean.input[0])
        if square is not None and square.op_type == "Mul" and square.input[0] == square.input[1]:
            names += [node.name for node in (square, made_by.get(square.input[0])) if node is not None]
    return names


def write_onnx_int8(network: nn.Module, path: Path, context: ExportContext) -> None:
    """Writes ONNX with int8 convolutions: static quantisation per channel, calibrated on the context's images."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.images = iter(context.calibration)

        def get_next(self):
            image = next(self.images, None)
            return None if image is None else {"image": image}

    plain, prepared = path.with_suffix(".plain"), path.with_suffix(".prepared")
    write_onnx(network, plain, context)
    quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(path),
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    plain.unlink()
    prepared.unlink()


def read_onnx(path: Path, _) -> Runner:
    """Runs the file by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})[0]
