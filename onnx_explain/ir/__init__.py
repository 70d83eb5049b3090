"""The graph layer: onnx-ir used directly, plus a view, an emitter, composite nodes and canonical form.

onnx_ir's mutators and onnxscript are imported here alone; what stands above reads `ir.Value` and writes through `Emitter`.
"""
