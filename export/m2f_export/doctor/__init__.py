"""Find what is wrong with a deploy config, an ONNX, a TensorRT plan or a repository before a server does."""

from m2f_export.doctor.diagnosis import Diagnosis, diagnose
from m2f_export.doctor.findings import Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
