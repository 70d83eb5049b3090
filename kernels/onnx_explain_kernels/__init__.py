"""The kernels: arrays in, arrays out. Knows nothing of ONNX; empty until the GPU backend lands."""
