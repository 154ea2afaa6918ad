"""Everything that `m2f doctor` can report, as a table: code, what, why and fix, with `{placeholders}` in the texts.

The checks decide; this table words. `ENTRY(where, name=value, ...)` returns the finding. A code has several entries
where its level or its words depend on the kind of file.
"""

from m2f_export.doctor.findings import Entry, error, note, warning

# fmt: off

# Any file

FILE_EMPTY = error("file-empty", "{name} is empty", "a copy or a download was interrupted, or the disk was full",
    "copy or make the file again")
FILE_UNREADABLE = error("file-unreadable", "{reason}", "a server that runs as this user cannot read it either",
    "chmod, or chown to the user of the server; or copy it again")
WEB_PAGE = error("web-page", "{name} is a web page, not the file itself",
    "the download followed a link to a page about the file, or was refused",
    "download it again, from the link to the file")
GIT_LFS_POINTER = error("git-lfs-pointer", "{name} is a Git LFS pointer, not the file itself",
    "the repository was cloned without Git LFS, so the content was never fetched", "git lfs install && git lfs pull")

# Deploy configs

_NAMES_DIFFER = (
    "{kind}_names are {named}; the {kind}s of {model} are {real}",
    "the ONNX was made with another config, or its head was changed: clients will ask for the wrong tensors",
    "write onnx_config.{kind}_names={real_list}, or export again with this config")
_OTHER_CONFIG = ("the ONNX was not made with this config", "export again with this config")
DEPLOY_CONFIG_INVALID = error("deploy-config-invalid", "{reason}", "neither m2f export nor MMDeploy can use the file",
    "correct that key")
INPUT_NAMES_DIFFER = error("input-names-differ", *_NAMES_DIFFER)
OUTPUT_NAMES_DIFFER = error("output-names-differ", *_NAMES_DIFFER)
INPUT_SHAPE_DIFFERS = error("input-shape-differs",
    "input_shape, which MMDeploy writes as [width, height], gives {axis} = {asked}; {model} takes {real}",
    *_OTHER_CONFIG)
BATCH_DIFFERS = error("batch-differs", "dynamic_axes leaves the batch free; in {model} the batch is fixed to {batch}",
    *_OTHER_CONFIG)
SETTINGS_DIFFER = warning("settings-differ", "{config} asks for {pairs}",
    "the server's thresholds are not those of the deploy config",
    "write the values into the parameters of {step}, or send them with each request")
KEY_NOT_READ = warning("key-not-read", "post_processing.{key} means nothing for Mask2Former",
    "neither MMDeploy nor m2f reads the key", "remove the key; keys that act here: {keys}")
KEY_MISSPELT = warning("key-not-read", "post_processing.{key} means nothing for Mask2Former: did you mean {close}?",
    KEY_NOT_READ.why, "write {close} instead")
KEYS_OF_MMDEPLOY = note("key-not-read", "not read: {keys}", "m2f export decides these by itself", "nothing to do")
MMDEPLOY_IGNORES = note("mmdeploy-ignores", "MMDeploy ignores post_processing for Mask2Former; m2f serves with {keys}",
    "open-mmlab/mmdeploy#2775: MMDeploy's engine returns raw cls_logits and mask_logits whatever these keys say",
    "m2f export --deploy-config writes them into the postprocess step, where they act")
MASKS_OFF = warning("masks-off", "export_postprocess_mask is false",
    "m2f obeys the key: `rle` and `masks` stay empty. (MMDeploy's base config has it too, but MMDeploy ignores it.)",
    "post_processing.export_postprocess_mask = true, if you want masks")
DEPLOY_INPUT_NAMES = error("input-names", "input_names are {names}; the engine's input is 'input'",
    "Triton maps tensors by name, so the ensemble cannot feed the engine", "onnx_config.input_names = ['input']")
OUTPUT_ORDER = error("output-order", "output_names are in the order {names}",
    "MMDeploy names the outputs in their order, classes first: each output would carry the other's name",
    "onnx_config.output_names = {outputs}")
DEPLOY_OUTPUT_NAMES = error("output-names", "output_names are {names}; Mask2Former's outputs are {wanted}",
    "MMDeploy's Mask2Former has these two outputs under any name, and Triton maps tensors by name",
    "onnx_config.output_names = {outputs}")
DEPLOY_OPSET = warning("opset-too-old", "opset_version is {opset}",
    "GridSample is standard from opset 16; instead MMDeploy writes mmdeploy::grid_sampler, which needs MMDeploy's "
    "plugin library in the server",
    "m2f export always writes opset 17; for other exporters: onnx_config.opset_version = 17")
INPUT_SHAPE_MISSING = warning("input-shape-missing", "neither input_shape nor a dynamic height and width is given",
    "MMDeploy then fixes the size of the image that it traces with; m2f export leaves height and width free",
    "onnx_config.input_shape = [width, height], such as [1344, 800], or dynamic_axes 2 and 3 of 'input'")
_GRID = "the backbone halves the input five times, so mask cells and pixels no longer lie on one grid"
DEPLOY_INPUT_SIZE = warning("input-size", "input_shape is {width} x {height} (width x height), not multiples of 32",
    _GRID, "round both up to a multiple of 32")
DEPLOY_BATCH_FIXED = warning("batch-fixed", "dynamic_axes does not leave the batch free (axis 0 of 'input')",
    "MMDeploy's graph then takes one image at a time; m2f export leaves the batch free",
    "dynamic_axes = {{'input': {{0: 'batch'}}, 'cls_logits': {{0: 'batch'}}, 'mask_logits': {{0: 'batch'}}}}")
BACKEND = warning("backend", "backend_config.type is {backend}",
    "the repository serves Mask2Former with TensorRT or ONNX Runtime", "one of: {backends}")
PROFILE_BATCH = warning("profile-batch", "max_shape {shape} allows a batch of {batch}",
    "the configurations say max_batch_size: {limit}, and TensorRT refuses batches above its profile",
    "max_shape = {wider}, or max_batch_size: {batch}")
PROFILE_DIFFERS = error("profile-differs", "input_shape (h, w) {size} is outside the profile {smallest} to {largest}",
    "the engine would refuse its own input; input_shape is [width, height], the profile [N, C, H, W]",
    "write input_shape as [width, height], or correct min_shape and max_shape")
ONNX_NOT_BESIDE = note("onnx-not-beside", "{onnx} is not in the same folder",
    "its names were not compared with the config", "m2f doctor {onnx} --deploy-config {path}")

# ONNX

_EXPORT = "export it with m2f export, which writes standard operators only"
_BY_NAME = "Triton maps tensors by name: "
ONNX_UNREADABLE = error("onnx-unreadable", "{reason}", "no runtime can load the file",
    "copy the file again and compare sizes, or export again")
_WEIGHTS = (
    "weights of {name} are in that file, which must be beside the ONNX under exactly that name",
    "copy {weights} to {folder}/ again")
EXTERNAL_DATA_MISSING = error("external-data-missing", "its weights file {weights} is missing", *_WEIGHTS)
EXTERNAL_DATA_TRUNCATED = error("external-data-truncated",
    "its weights file {weights} has {size} bytes; {needed} are needed", *_WEIGHTS)
ONNX_INVALID = error("onnx-invalid", "onnx's checker refuses the graph: {reason}",
    "a runtime will refuse the graph, or compute something else", _EXPORT)
ONNXRUNTIME_OPERATOR = warning("onnxruntime-operator", "operators of ONNX Runtime only: {operators}",
    "TensorRT's parser does not know them", _EXPORT)
_PLUGIN = "they need MMDeploy's plugin library in the server: neither Triton's ONNX Runtime nor its TensorRT has it"
CUSTOM_OP = error("custom-op", "custom operators: {operators}", _PLUGIN,
    "export the checkpoint: m2f export CONFIG CHECKPOINT --repository DIR writes standard operators only")
GRID_SAMPLER_OP = error("custom-op", "custom operators: {operators}", _PLUGIN,
    "m2f export CONFIG {name} --repository DIR replaces them by the standard GridSample")
ONNX_OPSET = warning("opset-too-old", "opset {opset}",
    "Mask2Former's deformable attention needs GridSample, which is standard from opset 16", "export with opset 17")
FLOAT64_GRID_SAMPLE = error("float64-grid-sample", "float64 in {count} GridSample: {nodes}",
    "ONNX Runtime has no float64 GridSample, and TensorRT has no float64 at all",
    "cast the sampling grid to float32 before tracing; m2f export does")
ONNX_INPUT_NAMES = error("input-names", "its inputs are: {names}; the engine has one input, 'input'",
    _BY_NAME + "the ensemble cannot feed this graph", "export again with input_names=['input']")
HALF_IO = error("half-io", "'{name}' is FLOAT16",
    "the preprocessing makes UINT8 or FP32, so Triton refuses the model",
    "keep the input in float32 (keep_io_types) inside a half-precision graph")
HALF_LOGITS = note("half-logits", "'{name}' is FLOAT16",
    "half the bytes to copy from step to step; the engine and the steps that read it must state TYPE_FP16",
    "m2f export --describe states it in every configuration")
INPUT_LAYOUT = error("input-layout", "input 'input' is {dtype} {shape}",
    "the preprocessing makes only UINT8 [N, H, W, 3] or FLOAT [N, 3, H, W]; of grey, 1 channel", _EXPORT)
FLOAT_INPUT = note("float-input",
    "takes float32 [3, H, W], normalised outside: {floats} instead of {bytes} for {height} x {width}",
    "works with layout float32_chw, at four times the bytes to the engine and with normalisation on the CPU",
    "m2f export writes a graph that takes uint8 [H, W, 3] and normalises inside")
ONNX_INPUT_SIZE = warning("input-size", "the input's {axis} is {size}, not a multiple of 32", _GRID,
    "export with multiples of 32")
ONNX_BATCH_FIXED = warning("batch-fixed", "the batch is fixed to {batch}",
    "Triton cannot join requests, and refuses the graph in a model with max_batch_size > 0",
    "export with a dynamic axis 0 for the input and every output")
SERVED_BATCH_FIXED = error("batch-fixed", ONNX_BATCH_FIXED.what, ONNX_BATCH_FIXED.why,
    f"{ONNX_BATCH_FIXED.fix}, or max_batch_size: 0")
HEAD_KEPT = note("head-kept", "the graph holds the head: {names}",
    "its outputs are instances, so the postprocess step does not fit behind it",
    "serve it in a repository made by m2f export --head")
_OUTPUT_FIX = "export again with output_names={outputs}, in this order"
ONNX_OUTPUT_NAMES = error("output-names", "no output {missing}; its outputs are: {names}",
    _BY_NAME + "the engine must have cls_logits and mask_logits", _OUTPUT_FIX)
OUTPUT_RANK = error("output-rank", "{name} has {rank} axes {shape}; expected [{axes}]",
    "exporters name the outputs in their order, so two outputs may have changed places", _OUTPUT_FIX)
NOT_RUN = note("not-run", "not run: {size} and {pixels} pixels; at most {max_size} and {max_pixels}",
    "only a run shows whether the batch is really free, and how large the masks are",
    "send it a batch of 2 once it is served")
ONNXRUNTIME_REFUSES = error("onnxruntime-refuses", "ONNX Runtime does not run it: {reason}",
    "ONNX Runtime is the engine on the CPU, and TensorRT rarely accepts what ONNX Runtime refuses", _EXPORT)
BATCH_BAKED = error("batch-baked", "the batch is baked in: axis 0 is free, but a batch of {batch} fails: {reason}",
    "Triton's dynamic batching joins requests: all of them fail, or get each other's answer",
    "m2f export makes the batch really free; or set max_batch_size: 1 and no dynamic_batching")
FULL_SIZE_MASKS = warning("full-size-masks",
    "full-size masks: {example}{queries} x {height} x {width} in mask_logits, {full} a response; at stride 4: {small}",
    "sixteen times the memory and traffic, for pixels that the post-processing can interpolate itself",
    "m2f export leaves the upsampling out; to serve it unchanged, set mask_stride to 1 in the postprocess step")

# TensorRT plans

_REBUILD = "trtexec --onnx=model.onnx --saveEngine=model.plan, in the container that will serve it"
_OWN_VERSION = "TensorRT loads only plans of its own version, unless they were built version-compatible"
PLAN_TRUNCATED = error("plan-truncated", "the plan is incomplete: {size} bytes, at least {wanted} expected",
    "a copy was interrupted; TensorRT refuses the rest", f"copy it again, or build it again: {_REBUILD}")
TENSORRT_RTX_PLAN = error("tensorrt-rtx-plan", "built by {built}, not by TensorRT",
    "Triton's TensorRT backend loads plans of TensorRT only; the two formats do not mix",
    f"build it with TensorRT: {_REBUILD}")
PLAN_VERSION_UNKNOWN = note("plan-version-unknown",
    "a TensorRT plan in a serialization version that doctor does not know",
    "the TensorRT version that built it cannot be read from its header", "trtexec --loadEngine={path} says more")
SERVER_TENSORRT_UNKNOWN = note("tensorrt-version",
    "built by TensorRT {built}; the version of the server is not known here", _OWN_VERSION,
    "m2f doctor --tensorrt-version X.Y compares the two")
TENSORRT_VERSION = error("tensorrt-version", "built by TensorRT {built}; the server has {wanted}", _OWN_VERSION,
    f"build it again with TensorRT {{wanted}}: {_REBUILD}")
PLAN_IS_ONNX = error("plan-is-onnx", "an ONNX model under the name of a plan",
    "Triton hands the file to TensorRT, which refuses it", f"build the plan from it: {_REBUILD}")
PLAN_UNREADABLE = error("plan-unreadable", "not a TensorRT plan: it starts with {tag!r}, a plan with b'ftrt'",
    "TensorRT refuses the file (`Magic tag does not match`)", f"build it again: {_REBUILD}")

# Repositories: folders and configurations

_NOT_LOADED = "Triton does not load the model, nor an ensemble that uses it"
_COPY_SHIPPED = "copy it from the shipped model_repository"
_REFUSES = "the model refuses to start, or every request fails"
_IN_PARAMETERS = "correct it in `parameters`"
REPOSITORY_EMPTY = error("repository-empty", "no model in this folder",
    "a repository is a folder of models, each a folder with a config.pbtxt", "m2f export makes a repository")
REPOSITORY_IS_MODEL = error("repository-empty", "one model, not a repository", REPOSITORY_EMPTY.why,
    "m2f doctor {parent}")
REPOSITORY_IS_HUGGING_FACE = error("repository-empty", "a Hugging Face folder, not a repository",
    REPOSITORY_EMPTY.why, "m2f export {folder} --repository DIR")
REPOSITORY_BELOW = error("repository-empty", "no model in this folder, but in {below}", REPOSITORY_EMPTY.why,
    "m2f doctor {below}; m2f serve --model-repository {below}")
_NOT_STARTED = "the server does not start: "
STRAY_FOLDER = error("stray-folder", "{name} is a folder without a config.pbtxt",
    _NOT_STARTED + "Triton takes every folder of a repository for a model, hidden ones too (files are no matter)",
    "move {name} out of the repository; or keep the models in a folder of their own, and serve that")
LINK_DANGLING = error("link-dangling", "{name} is a link to {target}, which cannot be followed",
    _NOT_STARTED + "Triton follows every link in the folders of a repository and of a model",
    "remove {name}, or bring back what it points to")
OLD_LAYOUT = warning("old-layout", "export.json beside the models: an export of before exports had names",
    "it serves as before, but knows no output `class_names`, and the next export does not record what belongs to it",
    "m2f export with the same arguments and --repository {folder}: it replaces these models and this file only")
MODEL_NAME = error("model-name", "the name {name!r} has characters that a shell or ASCII does not have",
    "Triton starts Python models with a shell, so the model never becomes ready",
    "rename folder and model: letters, digits and _ - . only")
CONFIG_MISSING = error("config-missing", "{name} has no config.pbtxt",
    "Triton cannot guess the tensors of these models", _COPY_SHIPPED)
CONFIG_UNREADABLE = error("config-unreadable", "the file does not parse: {reason}",
    "Triton skips the model, and every ensemble that uses it fails", "correct that line and column")
CONFIG_NAME = error("config-name", 'name: "{name}" in the folder {folder}',
    "Triton refuses a model whose name is not the name of its folder", 'name: "{folder}"')
VERSION_MISSING = error("version-missing", "{name} has no version folder (1/)", "Triton finds no version to load",
    "mkdir {folder} (git keeps no empty folder: put a .gitkeep into it)")
VERSION_NAME = error("version-name", "Triton takes the folder {name} of {model} for version {number}",
    "Triton reads the number that a name begins with, and then finds no folder {number}",
    "rename {name}: a version is a whole number; other names begin with a letter")
VERSION_TOO_LARGE = error("version-name", "the version {name} of {model} is above {largest}",
    _NOT_STARTED + "Triton aborts on a number that it cannot hold", "rename {name}")
MODEL_FILE_MISSING = error("model-file-missing", "{name} is missing", _NOT_LOADED, _COPY_SHIPPED)
RESPONSE_CACHE = error("response-cache", "the response cache is on",
    "its key leaves out parameters and requested outputs, so a request gets the answer to another one",
    "remove response_cache")
_QUEUE = (
    "{name} has a queue that refuses requests",
    "Triton loses wake-ups of such a queue: requests wait for the next request, or half a second")
QUEUE_POLICY = warning("queue-policy", *_QUEUE,
    "remove default_queue_policy: the preprocess step refuses for all steps")
QUEUE_OF_ONE = warning("queue-policy", _QUEUE[0] + ", and one instance", _QUEUE[1],
    "count: 2 in instance_group: each instance wakes the queue for the other")
PARAMETER_INVALID = error("parameter-invalid", "{reason}", _REFUSES, _IN_PARAMETERS)
PREPROCESSING_FAILS = error("parameter-invalid", "the parameters do not work on an image of 8 x 6: {reason}", _REFUSES,
    "sizes are [height, width], colours [r, g, b]; m2f.preprocess.Preprocessing explains each key")
PARAMETER_UNKNOWN = warning("parameter-unknown", "parameter '{key}' is read by nothing",
    "a misspelt key leaves the default in force", "keys: {keys}")
CLASS_NAMES_TWICE = warning("class-names-twice", "class_names has twice: {names}",
    "`classes` by name means only the first of them", "give every class its own name")
STEPS_DIFFER = error("steps-differ", "{key} is not the same in {stated}",
    "the outputs of one request do not fit together", "write the same value into each")
SERVER_TOO_OLD = warning("server-too-old", "Triton {version} ({source}) is older than Triton 2.71.0 (container 26.07)",
    "many vulnerabilities were fixed by then, some of them reachable without logging in",
    "in production serve with nvcr.io/nvidia/tritonserver:26.07-py3 or later; keep this server on the loopback address")
_FAULTS = ("Triton {version} ({source}) has known faults with these requests: {names}",
    "such a request ends the server or the process of a model, or occupies it for seconds: docs/triton-faults.md",
    "let others reach the server only through the front (deploy/nginx), which refuses these requests")
TRITON_FAULTS = warning("triton-faults", *_FAULTS[:2], _FAULTS[2] + "; Triton {newest} or later has fewer of them")
TRITON_FAULTS_OPEN = note("triton-faults", *_FAULTS)

# Repositories: the engine

_MISSING = "{files} is missing; {config} needs it"
_ENGINE_NEVER = "Triton does not load the engine, with this configuration or any other"
_ENGINE_WITH = "with {option} Triton does not load the engine; `{serve}` works"
_PLAN_FIX = "m2f engine, in the container that will serve it"
_FILES_FIX = "m2f export, or copy {files} to {folder}/"
PLAN_MISSING = error("engine-missing", _MISSING, _ENGINE_NEVER, _PLAN_FIX)
PLAN_MISSING_HERE = warning("engine-missing", _MISSING, _ENGINE_WITH, _PLAN_FIX)
ENGINE_MISSING = error("engine-missing", _MISSING, _ENGINE_NEVER, _FILES_FIX)
ENGINE_MISSING_HERE = warning("engine-missing", _MISSING, _ENGINE_WITH, _FILES_FIX)
ENGINE_CONFIGS_DIFFER = error("engine-configs-differ",
    "its inputs, outputs or max_batch_size are not those of config.pbtxt",
    "the ensembles fit only one of the two: with the other, Triton refuses them or every request fails",
    "make them the same in every config")
_ENGINE_FAILS = "Triton does not load the engine, or every request fails"
ENGINE_TENSOR = error("engine-tensor", "{kind} '{name}': {model} has none of that name, but: {real}",
    "Triton does not load the engine", "use the names of {model}, or export it again")
ENGINE_DTYPE = error("engine-dtype", "{kind} '{name}' is TYPE_{stated}; in {model} it is {real}", _ENGINE_FAILS,
    "data_type: TYPE_{wanted}")
ENGINE_DIMS = error("engine-dims", "{kind} '{name}' has dims {stated}; in {model} they are {real}", _ENGINE_FAILS,
    "dims: {real}, or -1 for free axes")
_WARMUP = "the warm-up fails, and Triton does not load the model"
WARMUP_NAME = error("warmup", "warm-up '{warmup}' feeds '{name}'", _WARMUP, "the inputs are: {inputs}")
WARMUP_DTYPE = error("warmup", "warm-up '{warmup}' feeds {stated}; the input is {wanted}", _WARMUP,
    "data_type: TYPE_{wanted}")
WARMUP_DIMS = error("warmup", "warm-up '{warmup}' feeds dims {stated}; the engine takes {wanted}", _WARMUP,
    "dims: {wanted}")
LAYOUT = error("layout", "layout is {stated}; {model} takes {layout}", "the engine refuses every input",
    'parameters {{ key: "layout" value {{ string_value: "{layout}" }} }}, and the same type in every config')
INPUT_SIZE = error("input-size", "input_size is {stated}; {model} takes {size} (height, width)",
    "the engine refuses every input of another size",
    'parameters {{ key: "input_size" value {{ string_value: "{size_list}" }} }}')
CLASS_NAMES = error("class-names",
    "class_names has {names} names; cls_logits has {columns} columns: {classes} classes and no-object",
    "labels get the wrong name, or none (no-object is the {column} column and has no name)",
    "write the names of the training data, in the order of the labels, without no-object")
MASK_STRIDE = error("mask-stride", "mask_stride is {stride}, but {side} pixels of input become {cells} mask cells",
    "masks are placed at the wrong scale, or every request fails",
    'parameters {{ key: "mask_stride" value {{ string_value: "{wanted}" }} }}')

# Repositories: ensembles

_ENSEMBLE = "Triton does not load the ensemble"
ENSEMBLE_MODEL_MISSING = error("ensemble-model-missing",
    "step '{step}': there is no such model, or its config.pbtxt cannot be read", _ENSEMBLE,
    "add the folder {step}, or correct model_name")
ENSEMBLE_MAP_UNKNOWN = error("ensemble-map", "step '{step}': {kind}_map has {names}, which the step does not have",
    _ENSEMBLE, "its {kind}s are: {real}")
ENSEMBLE_MAP_LACKS = error("ensemble-map", "step '{step}': {kind}_map lacks {names}", _ENSEMBLE,
    "its {kind}s are: {real}")
ENSEMBLE_TENSOR_TWICE = error("ensemble-tensor-twice", "tensor '{name}' is made more than once", _ENSEMBLE,
    "give each its own name")
ENSEMBLE_TENSOR_UNMADE = error("ensemble-tensor-unmade",
    "tensor '{name}', for {reader}, is neither an input of the ensemble nor made by a step", _ENSEMBLE,
    "tensors there: {made}")
ENSEMBLE_TYPES = error("ensemble-types", "'{name}' is {given}; {reader} is {wanted}", _ENSEMBLE,
    "make the two configurations say the same")
ENSEMBLE_LEAF = error("ensemble-leaf", "the output '{name}' is also read by step '{step}'",
    "a request that does not ask for it fails with 'unexpected deadlock' (triton-inference-server/server#7482)",
    "let the step that makes it return it twice, and read the second, inner tensor (such as '_{name}')")
ENSEMBLE_OPTIONAL = error("ensemble-optional", "the input '{name}' is optional",
    "Triton prunes the wrong steps: requests fail with 'unexpected deadlock'", "remove optional: true")
ENSEMBLE_FIRST_STEP = error("ensemble-first-step",
    "the input '{name}' is read only by {readers}, which some requests do not need; the first step is {first}",
    "Triton takes the input for an unrequested output of the first step and prunes that step: 'unexpected deadlock'",
    "put the step {reader} first in the list; the order does not say when steps run")
ENSEMBLE_BATCH = error("ensemble-batch", "max_batch_size {own}, but {inner} in its step {step}",
    "Triton does not load an ensemble whose batches are larger than those of its steps", "set both alike")

# fmt: on
ENTRIES = tuple(entry for entry in list(globals().values()) if isinstance(entry, Entry))
