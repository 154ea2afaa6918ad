"""`m2f export` without m2f's rewriting of the graph: what `torch.onnx.export` and onnxslim give by themselves.

`python -m benchmarks.peers.plain_graph CONFIG CHECKPOINT --onnx FILE --size 256 256`
"""

import m2f_export.graph
from m2f_cli.main import main

if __name__ == "__main__":
    m2f_export.graph.rewritten = lambda model: model
    main()
