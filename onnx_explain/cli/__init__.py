"""The command line: `onnx-explain demo | explain | convert | check | methods`.

`app` declares the commands, `arguments` reads what is written after them, `explaining` runs them over many inputs,
`demo` over the bundled picture, `console` prints. Nothing here knows an operator or a rule.
"""

from onnx_explain.cli.app import app, main

__all__ = ["app", "main"]
