#!/bin/sh
# Instances of one picture in plain JSON, with curl: the picture is a data URL, so any language can send it.
set -eu
picture=$1 url=$2 model=${3:-mask2former}

{
  printf '%s' '{"parameters": {"score_threshold": 0.6},
    "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": ["data:image/jpeg;base64,'
  base64 < "$picture" | tr -d '\n'
  printf '%s' '"]}], "outputs": [{"name": "scores"}, {"name": "labels"}, {"name": "boxes"}, {"name": "areas"}]}'
} | curl --silent --show-error --fail-with-body --data-binary @- "$url/v2/models/$model/infer"
