from pathlib import Path

DOMAIN, NAME = "vmunet", "CrossScan"  # of the ONNX function
VERSION = 1  # of its inputs, outputs and meaning: that of the domain in files; also in models/onnx/cross_scan.cc
SOURCE = Path(__file__).parents[2] / "onnx/cross_scan.cc"  # of the compiled operator
