"""Cut the small part of the golden arrays that is committed, so that parity tests run on any machine.

    python tools/cut_golden.py ../shared/golden tests/golden

Keeps the first sample of a few arrays per network, in float64, and a few single layers; at most 1.5 MB in all.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

CLASSIC = {
    "vggish": [
        "captum/saliency",
        "captum/guided_backprop",
        "captum/deconvolution",
        "zennit/EpsilonPlus",
        "zennit/EpsilonPlusFlat",
        "zennit/EpsilonAlpha2Beta1Flat",
        "zennit/EpsilonGammaBox",
        "zennit/ExcitationBackprop",
        "reference/gnl_grad",
        "reference/deeplift_rescale_zero",
        "captum/ig_zero_gausslegendre_8",
        "reference/gnl_ig_zero_gausslegendre_50",
        "cam_layer/activation",
        "captum/gradcam",
        "pytorch_grad_cam/GradCAM_raw",
        "pytorch_grad_cam/GradCAM_scaled_upsampled",
        "pytorch_grad_cam/GradCAMPlusPlus_raw",
        "pytorch_grad_cam/GradCAMPlusPlus_scaled_upsampled",
        "pytorch_grad_cam/HiResCAM_raw",
        "pytorch_grad_cam/HiResCAM_scaled_upsampled",
        "pytorch_grad_cam/LayerCAM_raw",
        "pytorch_grad_cam/LayerCAM_scaled_upsampled",
        "pytorch_grad_cam/XGradCAM_raw",
        "pytorch_grad_cam/XGradCAM_scaled_upsampled",
    ],
    "bnnet": [
        "captum/input_x_gradient",
        "zennit1.0.0/EpsilonPlus@mergebn",
        "zennit1.0.0/all:Gamma0.25@mergebn",
        "zennit/EpsilonAlpha2Beta1@nocanon",
        "zennit1.0.0/first:WSquare+ZPlus@mergebn",
        "reference/gnl_grad",
        "reference/deeplift_rescale_zero",
        "captum/ig_zero_gausslegendre_8",
        "reference/gnl_ig_zero_gausslegendre_50",
        "cam_layer/activation",
        "captum/gradcam",
        "pytorch_grad_cam/GradCAM_raw",
        "pytorch_grad_cam/GradCAM_scaled_upsampled",
        "pytorch_grad_cam/GradCAMPlusPlus_raw",
        "pytorch_grad_cam/GradCAMPlusPlus_scaled_upsampled",
        "pytorch_grad_cam/HiResCAM_raw",
        "pytorch_grad_cam/HiResCAM_scaled_upsampled",
        "pytorch_grad_cam/LayerCAM_raw",
        "pytorch_grad_cam/LayerCAM_scaled_upsampled",
        "pytorch_grad_cam/XGradCAM_raw",
        "pytorch_grad_cam/XGradCAM_scaled_upsampled",
    ],
}
ENCODER = ["x", "target", "torch/gradient", "lxt/attn", "lxt/cp", "lxt/eff_attn", "lxt/eff_cp"]
ENCODINGS = ["op13_decomposed", "op17", "op20"]
BOX = ["zbox_low", "zbox_high", "zbox_low_vec", "zbox_high_vec"]
RUNS = {"vgg_small": ("img0", "img1"), "resnet_small": ("img0", "img1")}
LAYERS = [
    "rap/conv3x3/x_pos",
    "rap/conv3x3/x_signed",
    "rap/first_conv_k3",
    "rap/maxpool3s2p1/x_pos",
    "rap/avgpool3s2p1/x_signed",
    "rap/add/x_signed",
    "rap/batchnorm",
    "rap/linear/x_pos",
    "rap/linear_first_prop/x_signed",
]


def cut_classic(source: Path, out: Path) -> None:
    for net, keys in CLASSIC.items():
        shutil.copyfile(source / f"{net}.onnx", out / f"{net}.onnx")
        with np.load(source / f"{net}.f64.npz") as arrays:
            kept = {k: arrays[k][:1] for k in ["x", "target", *keys]}
            kept |= {k: arrays[k] for k in BOX if k in arrays.files}
        np.savez_compressed(out / f"{net}.f64.npz", **kept)


def cut_encoder(source: Path, out: Path) -> None:
    """One transformer block in three encodings, whole: it is small."""
    for encoding in ENCODINGS:
        shutil.copyfile(source / f"enc_gelu_ln.{encoding}.onnx", out / f"enc_gelu_ln.{encoding}.onnx")
    with np.load(source / "enc_gelu_ln.f64.npz") as arrays:
        np.savez_compressed(out / "enc_gelu_ln.f64.npz", **{k: arrays[k] for k in ENCODER})


def cut_rap(source: Path, out: Path) -> None:
    for net, images in RUNS.items():
        shutil.copyfile(source / f"{net}.onnx", out / f"{net}.onnx")
        with np.load(source / f"rap_{net}.npz") as arrays:
            heat = [k for k in arrays.files if k.endswith("/heatmap") and k.split("/")[1] in images]
            np.savez_compressed(out / f"rap_{net}.npz", input=arrays["input"], **{k: arrays[k] for k in heat})
    (out / "single_onnx").mkdir(exist_ok=True)
    with np.load(source / "single_layers.npz") as arrays:
        listed = [c for c in json.loads(str(arrays["cases_json"])) if c["name"] in LAYERS]
        wanted = {k: arrays[k] for k in arrays.files if any(k.startswith(f"{name}/") for name in LAYERS)}
    wanted = {k: v for k, v in wanted.items() if "/f32/" not in k and "/param/" not in k}
    np.savez_compressed(out / "single_layers.npz", cases_json=json.dumps(listed), **wanted)
    for name in LAYERS:
        file = f"{name.replace('/', '__')}.onnx"
        shutil.copyfile(source / "single_onnx" / file, out / "single_onnx" / file)


def cut_rsp(source: Path, out: Path) -> None:
    with np.load(source / "rsp_vgg_small.npz") as arrays:
        kept = [k for k in arrays.files if k.endswith(("/heatmap", "/seed")) and "/img0/" in k]
        named = {k: arrays[k] for k in ("input", "classes_top3", *kept)}
    np.savez_compressed(out / "rsp_vgg_small.npz", **named)
    with np.load(source / "rsp_resnet_small_composed.npz") as arrays:
        kept = [k for k in arrays.files if k.endswith(("/heatmap", "/target"))]
        named = {k: arrays[k] for k in ("input", *kept)}
    np.savez_compressed(out / "rsp_resnet_small_composed.npz", **named)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    cut_classic(given.source / "classic", given.out)
    cut_encoder(given.source / "classic", given.out)
    cut_rap(given.source / "rap_rsp", given.out)
    cut_rsp(given.source / "rap_rsp", given.out)
    total = sum(f.stat().st_size for f in given.out.rglob("*") if f.is_file())
    print(f"{total / 1e6:.2f} MB in {given.out}")
    if total > 1_500_000:
        raise SystemExit("more than 1.5 MB: cut further")


if __name__ == "__main__":
    main()
