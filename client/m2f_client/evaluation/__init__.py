"""`m2f eval`: mask AP and panoptic quality of a server on a COCO data set, and what differs from another server."""
