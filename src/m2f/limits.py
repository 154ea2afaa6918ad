"""Limits of a request and of its answer; docs/limits.md explains each."""

MAX_BATCH_SIZE = 8
MAX_SIDE = 65_535  # pixels of an original image along one axis: as many as a JPEG can have

# limits that a repository may set otherwise: docs/limits.md
MAX_IMAGE_BYTES = 1 << 26  # of an encoded image
MAX_PIXELS = 1 << 26  # of an original image
MAX_INSTANCES = 1000  # of an image
MAX_MASK_BYTES = 1 << 27  # dense masks of one response: 100 instances of 800 x 1333
MAX_MAP_BYTES = 1 << 28  # a label map of one response: an image of MAX_PIXELS

# and limits that are fixed
MAX_QUERIES = 1000  # of logits
MAX_CLASSES = 10_000  # of logits, without no-object
MAX_WORK = 1 << 34  # queries x pixels of all original images of a request
MAX_CANDIDATES = 1 << 20  # of an image
MAX_COMPARED_CANDIDATES = 10_000  # of an image, where NMS or the cap per class goes through them one by one
MAX_COMPARED_EDGES = 1 << 31  # of NMS: for each mask those of all of its class
MAX_RLE_BYTES = 1 << 26  # of all instances of one response
MAX_EDGES = 1 << 26  # where runs of pixels begin and end, of an image's masks before scores are final
MAX_DOUBTS = 1 << 27  # pixels of an image's masks that rounding decides, which takes a hundred times as long
MAX_PARAMETERS = 1 << 16  # characters of a request's parameters as JSON: thresholds of 1,203 classes are 30,000
