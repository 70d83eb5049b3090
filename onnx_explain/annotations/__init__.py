"""What is known of pictures beside the pictures: classes, boxes and masks, read from the usual files.

`sources` finds the reader of a file or folder; the readers give `Truth` in pixels of the stored picture. Nothing here knows a
model, its view of a picture, or its class names. What is read may be hostile: sizes are checked before anything is allocated.
"""

from onnx_explain.annotations.labels import LabelFile
from onnx_explain.annotations.sources import source_of
from onnx_explain.annotations.truth import Name, Object, Source, Truth

__all__ = ["LabelFile", "Name", "Object", "Source", "Truth", "source_of"]
