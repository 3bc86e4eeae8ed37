"""Serve an exported policy over HTTP, with onnxruntime and numpy alone: python examples/serve_onnx.py policy.onnx 8000

The file is that of python -m lit_ppo export --format=onnx --out=policy.onnx (pip install -e '.[onnx]'). Then:
curl -d '{"obs": [[0.0, 0.0, 0.05, 0.0]]}' localhost:8000
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import onnxruntime

_DTYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64}


class Policy:
    """An exported policy without memory: from lists by input name to a list of actions."""

    def __init__(self, path: str) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.inputs = {entry.name: _DTYPES[entry.type] for entry in self.session.get_inputs()}

    def __call__(self, request: dict[str, Any]) -> list[Any]:
        if request.keys() != self.inputs.keys():
            raise ValueError(f"expected the keys {sorted(self.inputs)}, got {sorted(request)}")
        rows = {name: np.asarray(value, self.inputs[name]) for name, value in request.items()}
        return self.session.run(["action"], rows)[0].tolist()


def server(policy: Policy, port: int) -> HTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = 200, {"action": policy(body)}
            except Exception as error:  # of the request: wrong JSON, names, shapes
                status, answer = 400, {"error": str(error)}
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

    return HTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    serving = server(Policy(sys.argv[1]), int(sys.argv[2]))
    print(f"http://127.0.0.1:{serving.server_port}", flush=True)
    serving.serve_forever()
