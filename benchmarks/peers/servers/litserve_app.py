"""mmdetection or Hugging Face's pipeline behind LitServe: `litserve_app.py PORT WORKERS`, with KIND and THREADS.

A worker a core, as LitServe's documentation says for a processor. The picture is the body: its examples' base64 in
JSON would be a third larger.
"""

import os
import sys
from typing import Annotated

import litserve
import orjson
from fastapi import Body, Response


class Mask2Former(litserve.LitAPI):
    """Encoded picture in, instances out."""

    def setup(self, device):  # noqa: ARG002
        """Load the model once in each worker."""
        if os.environ["KIND"] == "mmdet":
            from mmdet_model import Detector  # noqa: PLC0415  # each only where it is used

            self.model = Detector()
        else:
            from huggingface_model import Segmenter  # noqa: PLC0415

            self.model = Segmenter()

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/jpeg")]):
        """Take the body as it is."""
        return request

    def predict(self, encoded):
        """Return the instances."""
        return orjson.dumps(self.model.predict(encoded))

    def encode_response(self, output) -> Response:
        """Send JSON."""
        return Response(output, media_type="application/json")


if __name__ == "__main__":
    server = litserve.LitServer(
        Mask2Former(api_path="/predict"), accelerator="cpu", workers_per_device=int(sys.argv[2]), timeout=False
    )
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
