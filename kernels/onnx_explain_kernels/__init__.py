"""Relevance kernels for NVIDIA GPUs: arrays in, arrays out; nothing here knows ONNX or onnx_explain.

`launch` is the door for callers. Importing the package loads nothing: triton and numba only when a kernel is compiled,
libcuda only when a `launch.Kernels` is made.
"""
