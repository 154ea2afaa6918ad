#!/bin/sh
# Instances of one picture over HTTP, with curl: the answer is KServe v2's JSON.
set -eu
picture=$1 url=$2 model=${3:-mask2former}

size=$(wc -c < "$picture")
header=$(cat <<JSON
{"parameters": {"score_threshold": 0.6},
 "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": $((size + 4))}}],
 "outputs": [{"name": "scores"}, {"name": "labels"}, {"name": "boxes"}, {"name": "areas"}]}
JSON
)
# the length of the element in four bytes, the lowest first, then the element
little_endian=$(printf '\\%03o\\%03o\\%03o\\%03o' \
  $((size & 255)) $((size >> 8 & 255)) $((size >> 16 & 255)) $((size >> 24 & 255)))
{ printf '%s' "$header"; printf "$little_endian"; cat "$picture"; } |
  curl --silent --show-error --fail-with-body --data-binary @- \
    --header "Inference-Header-Content-Length: ${#header}" --header "Content-Type: application/octet-stream" \
    "$url/v2/models/$model/infer"
