"""Instances of one picture over gRPC, with NVIDIA's tritonclient alone."""

import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

path, address, model = (*sys.argv[1:], "mask2former")[:3]
data = np.array([[Path(path).read_bytes()]], np.object_)
image = triton.InferInput("image", data.shape, "BYTES")
image.set_data_from_numpy(data)
wanted = [triton.InferRequestedOutput(name) for name in ("scores", "labels", "boxes", "areas")]
client = triton.InferenceServerClient(address)
answer = client.infer(model, [image], outputs=wanted, parameters={"score_threshold": 0.6})
scores, labels, boxes, areas = (answer.as_numpy(output.name())[0] for output in wanted)
for score, label, box, area in zip(scores, labels, boxes, areas, strict=True):
    print(f"{score:.3f} {label} {box.tolist()} {area}")
