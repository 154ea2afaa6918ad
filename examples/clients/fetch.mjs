// Instances of one picture over HTTP, with nothing but fetch.
import { readFile } from "node:fs/promises";

const [picture, url, model = "mask2former"] = process.argv.slice(2);
const data = await readFile(picture);
const header = new TextEncoder().encode(JSON.stringify({
  parameters: { score_threshold: 0.6 },
  inputs: [{ name: "image", datatype: "BYTES", shape: [1, 1], parameters: { binary_data_size: data.length + 4 } }],
  outputs: ["scores", "labels", "boxes", "areas"].map((name) => ({ name })),
}));
const length = new Uint8Array(4);
new DataView(length.buffer).setUint32(0, data.length, true); // of the element, the lowest byte first

const response = await fetch(`${url}/v2/models/${model}/infer`, {
  method: "POST",
  headers: { "Inference-Header-Content-Length": String(header.length), "Content-Type": "application/octet-stream" },
  body: new Blob([header, length, data]),
});
const answer = await response.json();
if (!response.ok) {
  console.error(answer.error);
  process.exit(1);
}
// in an order of their own
const { scores, labels, boxes, areas } = Object.fromEntries(answer.outputs.map(({ name, data }) => [name, data]));
scores.forEach((score, i) => {
  console.log(score.toFixed(3), labels[i], JSON.stringify(boxes.slice(4 * i, 4 * i + 4)), areas[i]);
});
