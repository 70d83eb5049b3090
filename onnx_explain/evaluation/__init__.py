"""Methods judged on a data set of any size: `evaluate` streams, batches and resumes; `summarise` and `draw` tell what came of it.

The measures are `onnx_explain.metrics`'; what is read of annotations is `onnx_explain.annotations`'.
"""

from onnx_explain.evaluation.cases import Case, DataSet, Fault, Known
from onnx_explain.evaluation.charts import draw
from onnx_explain.evaluation.measures import COLUMNS, GROUPS, MEASURES
from onnx_explain.evaluation.running import Run, Task, evaluate
from onnx_explain.evaluation.subject import Settings
from onnx_explain.evaluation.summary import Row, Summary, document, markdown, save, summarise, told

__all__ = [
    "COLUMNS",
    "GROUPS",
    "MEASURES",
    "Case",
    "DataSet",
    "Fault",
    "Known",
    "Row",
    "Run",
    "Settings",
    "Summary",
    "Task",
    "document",
    "draw",
    "evaluate",
    "markdown",
    "save",
    "summarise",
    "told",
]
