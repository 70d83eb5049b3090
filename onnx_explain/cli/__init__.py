"""The command line: `onnx-explain demo | explain | convert | check | methods`.

`app` and `options` declare the commands, `arguments` reads what is written after them, `explaining` runs over many
inputs, `results` writes their files, `report` and `console` print. Nothing here knows an operator or a rule.
"""

from onnx_explain.cli.app import app, main

__all__ = ["app", "main"]
