"""Inputs of files that may stop early, and what such a file runs."""

import json

import onnxruntime
import torch


def inputs_of(num=64):
    """By name, sequences of two lengths."""
    ids = torch.randint(20, (num, 8))
    mask = torch.ones_like(ids)
    mask[num // 2 :, 5:] = 0
    return {"token_ids": ids, "attention_mask": mask}


def products(path, inputs):
    """How many matrix products a file runs."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(path.parent / "profile")
    session = onnxruntime.InferenceSession(path, options)
    session.run(None, {name: value.numpy() for name, value in inputs.items()})
    with open(session.end_profiling()) as file:
        return sum("MatMul" in str(e.get("args", {}).get("op_name")) for e in json.load(file) if "kernel_time" in e["name"])


def rows(inputs, chosen):
    return {name: value[chosen] for name, value in inputs.items()}
