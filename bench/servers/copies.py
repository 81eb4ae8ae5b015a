"""A session a user: the naive way to serve personal models, every one an ONNX file of its own in memory."""

from __future__ import annotations

import os

import numpy as np
import onnx
import onnxruntime as ort
from fastapi import FastAPI, Request, Response
from onnx import helper, numpy_helper
from personal_model import USER_DIGITS

GRAPH, HEADS = onnx.load(os.environ["BENCH_GRAPH"]), np.load(os.environ["BENCH_HEADS"], mmap_mode="r")
OPTIONS = ort.SessionOptions()
OPTIONS.intra_op_num_threads = OPTIONS.inter_op_num_threads = 1
INPUT = GRAPH.graph.input[0]
SHAPE = tuple(d.dim_value for d in INPUT.type.tensor_type.shape.dim[1:])
DTYPE = helper.tensor_dtype_to_np_dtype(INPUT.type.tensor_type.elem_type)


def session(user: int) -> ort.InferenceSession:
    """Return a session of the backbone with a user's head behind it."""
    own = onnx.ModelProto()
    own.CopyFrom(GRAPH)
    features = own.graph.output.pop().name
    weight, bias = np.ascontiguousarray(HEADS[user][:, :-1]), np.ascontiguousarray(HEADS[user][:, -1])
    own.graph.initializer.extend([numpy_helper.from_array(weight, "own_w"), numpy_helper.from_array(bias, "own_b")])
    own.graph.node.append(helper.make_node("Gemm", [features, "own_w", "own_b"], ["own_logits"], transB=1))
    own.graph.node.append(helper.make_node("Softmax", ["own_logits"], ["probabilities"], axis=-1))
    own.graph.output.append(helper.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, None))
    return ort.InferenceSession(own.SerializeToString(), OPTIONS, providers=["CPUExecutionProvider"])


app = FastAPI()
sessions = [session(user) for user in range(int(os.environ["BENCH_USERS"]))]


@app.post("/dense")
async def dense(request: Request) -> Response:
    """Answer float32 probabilities to a dense body."""
    body = await request.body()
    x = np.frombuffer(body, DTYPE, offset=USER_DIGITS).reshape(-1, *SHAPE)
    probabilities = sessions[int(body[:USER_DIGITS])].run(None, {INPUT.name: x})[0]
    return Response(probabilities.tobytes(), media_type="application/octet-stream")
