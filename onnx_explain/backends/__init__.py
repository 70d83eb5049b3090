"""Where a relevance graph runs: ONNX Runtime on any CPU, or ONNX's own evaluator in float64."""
