"""The encoder as an OpenVINO graph, written in OpenVINO's own ops straight from the checkpoint's weights.

B = batch, S = padded length, h = hidden size, H = heads, D = head dim. Inputs: `ids` int32 [B, S], `lengths` int32 [B];
positions past a text's length may hold any valid id. Output: float32 [B, dimension], or [B, S, h] without pooling. A
node's name begins with the layer that it belongs to, as `layer_names` calls it, and a slash.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import Node
from openvino import opset15 as op

from fletcher_core.engines.openvino_int8 import int8_matrix
from fletcher_core.models import Architecture, LayerWeights, Weights
from fletcher_core.models.package import Pooling
from fletcher_core.telemetry.layers import layer_names

# Added to the scores of padding: far below any real score, and still finite in bfloat16 and float16.
_MASKED_SCORE = -30000.0


# A weight [out, in] as a node of the graph: in floats, or in int8.
Matrix = Callable[[npt.NDArray[np.float32]], Node]


def encoder_graph(
    architecture: Architecture,
    weights: Weights,
    pooling: Pooling | None,
    normalize: bool,
    dimension: int,
    int8: bool = False,
) -> ov.Model:
    """Build the graph. `pooling=None` leaves the token vectors as they are, for tests against a reference; `int8` puts
    the layers' weights in as int8."""
    matrix = int8_matrix if int8 else _f32
    ids = op.parameter([-1, -1], np.int32, name="ids")
    lengths = op.parameter([-1], np.int32, name="lengths")
    positions = op.range(_i32(0), _padded_length(ids), _i32(1), "i32")
    keep = op.convert(op.less(op.unsqueeze(positions, _axes(0)), op.unsqueeze(lengths, _axes(1))), "f32")  # [B, S]
    bias = op.unsqueeze(op.multiply(op.subtract(_f32(1.0), keep), _f32(_MASKED_SCORE)), _axes(1, 2))  # [B, 1, 1, S]
    rotate = _rotation(architecture, positions)

    named: set[str] = set()
    first, *names, last = layer_names(len(weights.layers))
    x = _embed(architecture, weights, ids, positions)
    _name(first, [x, bias], named)
    for name, layer in zip(names, weights.layers, strict=True):
        attended = _attention(architecture, layer, x, bias, rotate, matrix)
        x = _norm(architecture, op.add(x, attended), layer.attention_norm, layer.attention_norm_bias)
        inner = _mlp(architecture, layer, x, matrix)
        x = _norm(architecture, op.add(x, inner), layer.output_norm, layer.output_norm_bias)
        _name(name, [x], named)
    if pooling is not None:
        x = _pool(x, pooling, keep, lengths)
        if dimension < architecture.hidden_size:  # Matryoshka: cut first, normalize after, or the norm is not one
            x = op.slice(x, _axes(0), _axes(dimension), _axes(1), _axes(1))
        if normalize:
            x = op.normalize_l2(x, _axes(1), 1e-12, "max")
        _name(last, [x], named)
    return ov.Model([x], [ids, lengths], "encoder")


def _name(layer: str, nodes: list[Node], named: set[str]) -> None:
    """Put the layer before the names of `nodes` and of what they are computed from, where that has no layer yet."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node.get_name() not in named:
            named.add(node.get_name())
            node.set_friendly_name(f"{layer}/{node.get_friendly_name()}")
            waiting += [value.get_source_output().get_node() for value in node.inputs()]


def _embed(a: Architecture, w: Weights, ids: Node, positions: Node) -> Node:
    x = op.gather(_f32(w.words), ids, _i32(0))
    if w.positions is None:
        x = op.add(x, _f32(w.token_type))
    else:
        rows = op.gather(_f32(w.positions + w.token_type), positions, _i32(0))
        x = op.add(x, op.unsqueeze(rows, _axes(0)))
    return _norm(a, x, w.norm, w.norm_bias)


def _attention(
    a: Architecture, w: LayerWeights, x: Node, bias: Node, rotate: Callable[[Node], Node], matrix: Matrix
) -> Node:
    h = a.hidden_size

    def heads(part: int) -> Node:  # [B, H, S, D]
        rows = slice(part * h, (part + 1) * h)
        y = _linear(x, matrix(w.qkv[rows]), None if w.qkv_bias is None else w.qkv_bias[rows])
        return op.transpose(op.reshape(y, _axes(0, 0, a.heads, a.head_dim), True), _axes(0, 2, 1, 3))

    query, key, value = rotate(heads(0)), rotate(heads(1)), heads(2)
    scores = op.multiply(op.matmul(query, key, False, True), _f32(1 / math.sqrt(a.head_dim)))
    mixed = op.matmul(op.softmax(op.add(scores, bias), -1), value, False, False)
    joined = op.reshape(op.transpose(mixed, _axes(0, 2, 1, 3)), _axes(0, 0, h), True)
    return _linear(joined, matrix(w.attention_out), w.attention_out_bias)


def _mlp(a: Architecture, w: LayerWeights, x: Node, matrix: Matrix) -> Node:
    activation: dict[str, Callable[[Node], Node]] = {
        "gelu": lambda y: op.gelu(y, "erf"),
        "gelu_tanh": lambda y: op.gelu(y, "tanh"),
        "relu": op.relu,
        "silu": op.swish,
    }
    act = activation[a.activation]
    up = _linear(x, matrix(w.up), w.up_bias)
    inner = act(up) if w.gate is None else op.multiply(act(_linear(x, matrix(w.gate), None)), up)
    return _linear(inner, matrix(w.down), w.down_bias)


def _rotation(a: Architecture, positions: Node) -> Callable[[Node], Node]:
    """Rotary position embedding over head halves (Su et al. 2021, in the half-split form), or identity."""
    angles = a.rotary_angles()
    if angles is None:
        return lambda y: y
    tables = [op.gather(_f32(table), positions, _i32(0)) for table in (np.cos(angles), np.sin(angles))]
    cos, sin = (op.unsqueeze(table, _axes(0, 1)) for table in tables)  # [1, 1, S, D/2]

    def rotate(y: Node) -> Node:
        left, right = op.split(y, _i64(3), 2).outputs()
        return op.concat(
            [
                op.subtract(op.multiply(left, cos), op.multiply(right, sin)),
                op.add(op.multiply(right, cos), op.multiply(left, sin)),
            ],
            3,
        )

    return rotate


def _pool(x: Node, pooling: Pooling, keep: Node, lengths: Node) -> Node:
    if pooling == "cls":
        return op.squeeze(op.slice(x, _axes(0), _axes(1), _axes(1), _axes(1)), _axes(1))
    if pooling == "last":
        last = op.subtract(op.unsqueeze(lengths, _axes(1)), _i32(1))  # [B, 1]
        return op.squeeze(op.gather(x, last, _i32(1), 1), _axes(1))
    summed = op.reduce_sum(op.multiply(x, op.unsqueeze(keep, _axes(2))), _axes(1))
    return op.divide(summed, op.convert(op.unsqueeze(lengths, _axes(1)), "f32"))


def _norm(a: Architecture, x: Node, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> Node:
    return op.add(op.multiply(op.mvn(x, _axes(-1), True, a.norm_epsilon, "inside_sqrt"), _f32(weight)), _f32(bias))


def _linear(x: Node, weight: Node, bias: npt.NDArray[np.float32] | None) -> Node:
    y = op.matmul(x, weight, False, True)
    return y if bias is None else op.add(y, _f32(bias))


def _padded_length(ids: Node) -> Node:
    return op.squeeze(op.gather(op.shape_of(ids, "i32"), op.constant([1], np.int32), _i32(0)), _i32(0))


def _f32(value: npt.ArrayLike) -> Node:
    return op.constant(np.ascontiguousarray(value, dtype=np.float32))


def _i32(value: int) -> Node:
    return op.constant(np.int32(value))


def _i64(value: int) -> Node:
    return op.constant(np.int64(value))


def _axes(*values: int) -> Node:
    return op.constant(np.array(values, dtype=np.int64))
