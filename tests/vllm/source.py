"""What the installed vLLM says about itself, read from its source: nothing of it is imported or started."""

from __future__ import annotations

import ast
from pathlib import Path

REGISTRIES = (
    "_TEXT_GENERATION_MODELS", "_EMBEDDING_MODELS", "_LATE_INTERACTION_MODELS", "_REWARD_MODELS",
    "_TOKEN_CLASSIFICATION_MODELS", "_SEQUENCE_CLASSIFICATION_MODELS", "_MULTIMODAL_MODELS",
    "_TRANSFORMERS_SUPPORTED_MODELS", "_TRANSFORMERS_BACKEND_MODELS",
)  # fmt: skip

# Methods whose linear layers all come from one table of kernels.
ONE_KERNEL_TABLE = {"_POSSIBLE_NVFP4_KERNELS": ["modelopt_fp4"], "_POSSIBLE_MXFP8_KERNELS": ["modelopt_mxfp8", "mxfp8"]}


def facts(package: Path, version: str) -> dict[str, object]:
    """Everything of installer/data/vllm.json."""
    registry = _module(package / "model_executor/models/registry.py")
    quantization = package / "model_executor/layers/quantization"
    removed = {
        str(name): str(last) for name, last in ast.literal_eval(registry["_PREVIOUSLY_SUPPORTED_MODELS"]).items()
    }
    return {
        "version": version,
        "tool_parsers": _keys(_module(package / "tool_parsers/__init__.py")["_TOOL_PARSERS_TO_REGISTER"]),
        "reasoning_parsers": _keys(_module(package / "reasoning/__init__.py")["_REASONING_PARSERS_TO_REGISTER"]),
        "architectures": sorted({name for table in REGISTRIES for name in _keys(registry[table])}),
        "removed_architectures": dict(sorted(removed.items())),
        "quantizations": _capabilities(quantization),
        "quantizations_without_cpu": _without_cpu(package / "model_executor/kernels/linear/__init__.py"),
        "rocm_quantizations": _rocm(package / "platforms/rocm.py"),
        "deprecated_quantizations": sorted(
            ast.literal_eval(_module(quantization / "__init__.py")["DEPRECATED_QUANTIZATION_METHODS"])
        ),
        **_own_code(package),
    }


def _own_code(package: Path) -> dict[str, list[str]]:
    """Model types whose configuration and tokenizer vLLM and transformers bring themselves."""
    auto = package.parent / "transformers/models/auto"
    registry = _module(package / "transformers_utils/config.py")["_CONFIG_REGISTRY"]
    assert isinstance(registry, ast.Call)
    configs = {word.arg for word in registry.keywords if word.arg}
    configs |= _listed(_module(auto / "auto_mappings.py")["CONFIG_MAPPING_NAMES"])
    tokenization = _module(auto / "tokenization_auto.py")
    tokenizers = _listed(tokenization["TOKENIZER_MAPPING_NAMES"]) | {"PreTrainedTokenizer"}
    tokenizers |= set(ast.literal_eval(tokenization["MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS"]))
    return {"own_model_types": sorted(configs), "own_tokenizers": sorted(tokenizers)}


def _listed(table: ast.expr) -> set[str]:
    """The keys of OrderedDict([(key, value), …]), and the tokenizer classes among its values."""
    assert isinstance(table, ast.Call)
    (pairs,) = table.args
    words = [node.value for node in ast.walk(pairs) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return {word.removesuffix("Fast") for word in words if not word.endswith("Config")}


def _module(path: Path) -> dict[str, ast.expr]:
    """A module's top-level assignments."""
    found: dict[str, ast.expr] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            found[node.target.id] = node.value
    return found


def _keys(table: ast.expr) -> list[str]:
    assert isinstance(table, ast.Dict)
    return sorted(key.value for key in table.keys if isinstance(key, ast.Constant) and isinstance(key.value, str))


def _capabilities(folder: Path) -> dict[str, int]:
    """Method -> the lowest compute capability that its class accepts; 0 where it has none of its own."""
    tree = ast.parse((folder / "__init__.py").read_text())
    methods = _module(folder / "__init__.py")["QuantizationMethods"]
    assert isinstance(methods, ast.Subscript)
    named = [str(method) for method in ast.literal_eval(methods.slice)]
    tables = [n for n in ast.walk(tree) if isinstance(n, ast.AnnAssign) and _name(n.target) == "method_to_config"]
    table = tables[0].value
    assert isinstance(table, ast.Dict)
    lowest = _lowest(folder)
    found = dict.fromkeys(named, 0)
    for key, value in zip(table.keys, table.values, strict=True):
        assert isinstance(key, ast.Constant)
        if _name(value) in lowest:
            found[str(key.value)] = lowest[_name(value)]
    return dict(sorted(found.items()))


def _lowest(folder: Path) -> dict[str, int]:
    """Class -> what its get_min_capability returns, its own or its base's."""
    classes = {
        node.name: node
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config")
    }

    def of(name: str) -> int | None:
        node = classes.get(name)
        if node is None:
            return None
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and part.name == "get_min_capability":
                numbers = [
                    r.value.value
                    for r in ast.walk(part)
                    if isinstance(r, ast.Return) and isinstance(r.value, ast.Constant)
                ]
                return int(str(numbers[-1])) if numbers else None
        return next((found for base in node.bases if (found := of(_name(base))) is not None), None)

    return {name: number for name in classes if (number := of(name)) is not None}


def _without_cpu(path: Path) -> list[str]:
    """Methods whose layers have kernels for GPUs only."""
    tables = _module(path)
    found = []
    for name, methods in ONE_KERNEL_TABLE.items():
        table = tables[name]
        assert isinstance(table, ast.Dict)
        if not any(isinstance(key, ast.Attribute) and key.attr == "CPU" for key in table.keys):
            found += methods
    return sorted(found)


def _rocm(path: Path) -> list[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.AnnAssign) and _name(node.target) == "supported_quantization" and node.value:
            return sorted(ast.literal_eval(node.value))
    raise AssertionError(f"{path} names no quantizations")


def _name(node: ast.expr | None) -> str:
    return node.id if isinstance(node, ast.Name) else ""
