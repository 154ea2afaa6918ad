"""`m2f doctor PATH`: what is wrong with a deploy config, an ONNX, a plan or a repository, before a server says it."""

from m2f_export.doctor.diagnosis import Diagnosis, diagnose
from m2f_export.doctor.findings import Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
