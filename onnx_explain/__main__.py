"""`python -m onnx_explain`: the command line without its script."""

from onnx_explain.cli import main

if __name__ == "__main__":
    main()
