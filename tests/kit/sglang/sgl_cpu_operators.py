"""Declares two operators that torchvision asks for, and that are missing without CUDA, before it is imported."""

import importlib.abc
import sys

held = []  # or they would be gone again


class Looked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            held.append(library)
        return


sys.meta_path.insert(0, Looked())
