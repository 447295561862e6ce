"""Packaging: what is installed, with which extras and commands."""

from setuptools import find_packages, setup

STORAGE = ["fsspec", "universal_pathlib", "s3fs", "aiohttp", "botocore"]
CONFIG = ["jsonargparse[signatures]", "pyyaml"]
ENCODING = ["sentencepiece", "tokenizers", "gigatoken"]
DETECTION = ["charset-normalizer", "detect-secrets", "google-re2", "infer-license"]
DATA = [*STORAGE, *CONFIG, *ENCODING, *DETECTION, "numpy", "pyarrow", "isal", "rich", "matplotlib"]
MODEL = ["numpy", "torch", "transformers>=5,<6", "safetensors", "sentencepiece", "tokenizers", "rich"]
# Parsers of the languages in mose/dataset/languages.py; each wheel holds its grammar.
GRAMMARS = ["python", "java", "javascript", "typescript", "go", "rust", "c", "cpp", "c-sharp", "php", "ruby", "kotlin", "scala"]
PARSERS = ["tree-sitter", *(f"tree-sitter-{name}" for name in (*GRAMMARS, "bash", "lua"))]
TOOLS = ["pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", "types-PyYAML"]
# What users do with an exported folder, tried by tests; sentence-transformers' trainer takes `datasets`.
FOLDER_TOOLS = ["sentence-transformers>=6,<7", "datasets", "peft", "onnx", "onnxscript", "onnxruntime"]
# CoIR and other tasks of mteb by name; mteb needs Python 3.11.
MTEB = 'mteb; python_version >= "3.11"'
EXTRAS = {
    "data": [*DATA, *PARSERS],
    # `mose-data translate`: the client of OpenAI-compatible servers.
    "translate": ["openai>=2"],
    "train": [*MODEL, *CONFIG, *STORAGE, "deepspeed", "megatron-core", "isal", "tensorboard", "matplotlib"],
    "finetune": [*MODEL, *CONFIG, *PARSERS, "pyarrow", "scikit-learn", "matplotlib"],
    "cluster": [*CONFIG, "rich"],
    "gpu": ["flash-attn"],
    "dev": [
        *TOOLS,
        *FOLDER_TOOLS,
        "accelerate",
        "webdataset",
        "ir-measures",
        "datasketch",
        MTEB,
        "moto[s3]",
        "flask",
        "flask-cors",
    ],
}

setup(
    name="mose-at-scale",
    version="0.1.0",
    description="Large-scale pre-training of multi-exit code encoders (MoSE)",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(
        include=[f"{name}{more}" for name in ("mose", "data_prep", "pretrain", "finetune", "cluster") for more in ("", ".*")]
    ),
    package_data={"data_prep.sources.detection": ["linguist.json", "linguist.LICENSE"]},
    install_requires=CONFIG,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": [
            "mose-data=data_prep.cli:main",
            "mose-pretrain=pretrain.cli:main",
            "mose-finetune=finetune.cli:main",
            "mose-cluster=cluster.cli:main",
        ]
    },
)
