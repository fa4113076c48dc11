"""The catalogue of what is verified: what each item runs on which model, and what it must give."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from verification.subject import Subject, depth_of

ROOT = Path(__file__).parents[1]
TINY, SMALL, LARGE = MODELS = ("tiny", "gpt-oss-20b", "gpt-oss-120b")
IDENTICAL = "identical"
EMULATED = "emulated GPU"
HARDWARE = REAL, KERNELS_IN_TORCH, CPU = "on a GPU", "GPU code on emulated kernels", "on a CPU"


@dataclass(frozen=True)
class Inputs:
    """Where the proofs at real size work, and the files that this repository does not contain."""

    folder: Path
    vocabulary: Path
    tickets: Path


@dataclass(frozen=True)
class Check:
    """How an item is checked on a model.

    Attributes:
        run: does it and gives what was found; raises where it is not what must be.
        command: what a person types for the same; "" for `python -m verification`.
    """

    run: Callable[[Inputs], str]
    command: str = ""


@dataclass(frozen=True)
class Item:
    """A row of the table.

    Attributes:
        expected: what must be found.
        on: the check by model; None where it needs what no test machine has.
    """

    name: str
    title: str
    expected: str
    on: dict[str, Check | None] = field(default_factory=dict)

    @property
    def hardware(self) -> str:
        """What the check runs on, one of `HARDWARE`; what no machine here can check needs a GPU."""
        if not any(self.on.values()):
            return REAL
        return KERNELS_IN_TORCH if self.title.startswith(EMULATED) else CPU


def by_tests(selection: str, found: str = "passed", *, measured: str = "", environment: str = "") -> Check:
    """A check by pytest.

    Args:
        measured: properties that its tests record; of each, the largest number or all texts are what was found.
        environment: `NAME=value` that the tests need.
    """
    command = f"{environment} pytest {selection}".strip()
    return Check(partial(_run_tests, selection, found, measured, environment), command)


def _run_tests(selection: str, found: str, measured: str, environment: str, inputs: Inputs) -> str:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "junit_family=xunit1",  # pytest 9: the other kind holds no properties
            f"--junitxml={report}",
            *selection.split(),
        ]
        variables = dict([environment.split("=")]) if environment else {}
        subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=True, timeout=3600)
        suite = next(ElementTree.parse(report).iter("testsuite"))
    if int(suite.attrib["skipped"]) or not int(suite.attrib["tests"]):
        raise RuntimeError(f"{suite.attrib['skipped']} of {suite.attrib['tests']} tests of {selection} were skipped.")
    return "; ".join(_recorded(suite, name) for name in measured.split()) or found


def _recorded(suite: ElementTree.Element, name: str) -> str:
    """What tests recorded of a property."""
    values = [p.attrib["value"] for p in suite.iter("property") if p.attrib["name"] == name]
    if not values:
        raise RuntimeError(f"no test recorded {name!r}.")
    try:
        return f"{max(map(float, values)):.1e}"
    except ValueError:
        return "; ".join(values)


def _logits(model: str, prompts: tuple[tuple[int | None, int], ...], inputs: Inputs) -> str:
    """Compare by layers, None for all, and tokens of the prompt."""
    from verification.logits import compare

    found = []
    for layers, tokens in prompts:
        folder = inputs.folder / (model if layers is None else f"{model}-{layers}-layers")
        subject = Subject(model, folder, inputs.vocabulary, inputs.tickets, layers)
        comparison = compare(subject, tokens)
        if not comparison.difference <= 1e-4:
            raise RuntimeError(
                f"{tokens} tokens: the logits differ by {comparison.difference:.1e} of their spread; the closest "
                f"choice of an expert was {comparison.closest:.0e} (below 1e-5, rounding: name other --tickets)."
            )
        found.append(f"{comparison.difference:.1e} ({subject.depth()}, {tokens:,} tokens)")
    return "; ".join(found)


def _full_run(inputs: Inputs) -> str:
    from benchmarks.measure import GIB
    from verification.full_run import prove

    proof = prove(Subject(SMALL, inputs.folder / SMALL, inputs.vocabulary, inputs.tickets))
    if proof.peak > 20 * GIB or len(proof.losses) < 5 or proof.rounding > 0.5:
        raise RuntimeError(str(proof))
    return str(proof)


def _round_trip(model: str, layers: int | None, inputs: Inputs) -> str:
    from benchmarks.convert import convert_all
    from benchmarks.measure import GIB

    with tempfile.TemporaryDirectory(dir=inputs.folder) as folder:
        most = convert_all(model, layers, Path(folder)) / GIB  # verifies what it exports
    if most > 1.5:
        raise RuntimeError(f"a conversion took {most:.2f} GiB.")
    return f"{IDENTICAL}, {most:.1f} GiB ({depth_of(model, layers)})"


def _packed(inputs: Inputs) -> str:
    from benchmarks.packed_experts import compare

    with tempfile.TemporaryDirectory(dir=inputs.folder) as folder:
        if not compare(SMALL, 2, 512, 19, Path(folder)):  # after a first one
            raise RuntimeError("losses or adapters differ.")
    return f"{IDENTICAL} (2 of 24 layers)"


ITEMS = (
    Item(
        "logits",
        "logits in Megatron against transformers, fp32, past the window and past YaRN's length",
        "at most 1e-4, at full size of their spread",
        {
            TINY: by_tests("tests/modeling/test_parity.py", measured="logits"),
            SMALL: Check(partial(_logits, SMALL, ((None, 640), (2, 4480)))),
            LARGE: Check(partial(_logits, LARGE, ((2, 4480),))),
        },
    ),
    Item(
        "run",
        "the whole pipeline at full size on a CPU: import, LoRA, a kill, resume, PEFT, merged MXFP4",
        "at least 5 steps, at most 20 GiB, merged weights at most half a step from base + adapter",
        {SMALL: Check(_full_run)},
    ),
    Item(
        "round-trip",
        "HF → NeMo → HF, every bit; memory of a conversion",
        "identical, at most 1.5 GiB",
        {
            TINY: by_tests("tests/converters/test_round_trip.py", IDENTICAL),
            SMALL: Check(partial(_round_trip, SMALL, None), "python benchmarks/convert.py --model gpt-oss-20b"),
            LARGE: Check(
                partial(_round_trip, LARGE, 2), "python benchmarks/convert.py --model gpt-oss-120b --layers 2"
            ),
        },
    ),
    Item(
        "packed-experts",
        "experts that stay MXFP4 against bf16 experts: 20 LoRA steps, with a resume and EP2 where tiny",
        IDENTICAL,
        {
            TINY: by_tests("tests/training/test_packed_experts.py", IDENTICAL),
            SMALL: Check(_packed, "python benchmarks/packed_experts.py --steps 19"),
        },
    ),
    Item(
        "packed-sequences",
        "packed sequences against rows, on a CPU, losses relative",
        "at most 1e-5",
        {TINY: by_tests("tests/training/test_packed_sequences.py", measured="losses")},
    ),
    Item(
        "layouts",
        "the same losses and weights at TP2, EP2, PP2, DP2, TP2×EP2, EP2×PP2",
        "20 losses within 1e-4",
        {TINY: by_tests("tests/modeling/test_training_layouts.py", measured="losses")},
    ),
    Item(
        "resume",
        "interrupted after 10 steps of 20",
        "every loss and weight as without the break, bit for bit",
        {TINY: by_tests("tests/training/test_resume.py", IDENTICAL)},
    ),
    Item(
        "export",
        "export in transformers against the model in training, fp32",
        "at most 1e-3",
        {TINY: by_tests("tests/end_to_end/test_rehearsal.py", measured="logits")},
    ),
    Item(
        "plan",
        "parameters, gradients, optimizer state by `plan` against real modules",
        "within 2 %",
        {model: by_tests("tests/planning/test_memory.py", "≤ 2 %") for model in MODELS},
    ),
    Item(
        "slurm",
        "a real Slurm, two nodes, cancelled, requeued, resumed",
        "the exported model",
        {TINY: by_tests("tests/slurm"), SMALL: None, LARGE: None},
    ),
    Item(
        "containers",
        "containers, through podman's Docker socket",
        "the exported model",
        {TINY: by_tests("tests/containers", environment="TEST_CONTAINERS=1")},
    ),
    Item(
        "gpu-logits",
        f"{EMULATED}: logits, dense and packed, against transformers, fp32",
        "at most 1e-4",
        {TINY: by_tests("tests/gpu_path/test_model.py", measured="logits")},
    ),
    Item(
        "gpu-gradients",
        f"{EMULATED}: every gradient against the local spec, fp32, relative",
        "at most 1e-4",
        {TINY: by_tests("tests/gpu_path/test_model.py", measured="gradients")},
    ),
    Item(
        "gpu-export",
        f"{EMULATED}: strict restore, save and export, every bit",
        IDENTICAL,
        {TINY: by_tests("tests/gpu_path/test_model.py", IDENTICAL)},
    ),
    Item(
        "gpu-layouts",
        f"{EMULATED}: adapters' gradients at TP2 and EP2, fp32, relative",
        "at most 1e-5",
        {TINY: by_tests("tests/gpu_path/test_layouts.py", measured="gradients")},
    ),
    Item(
        "gpu-training",
        f"{EMULATED}: packed training in bf16, LoRA and full, resumed; TP2, PP2, EP2; CP2 unpacked; MXFP4 experts",
        "2 losses within 2e-4, 2 within 1e-3 (near ties of routers)",
        {TINY: by_tests("tests/gpu_path/test_training.py")},
    ),
    Item(
        "gpu-keys",
        f"{EMULATED}: keys that a checkpoint must have, at full size",
        "none is missing",
        {model: by_tests("tests/gpu_path/test_meta.py", IDENTICAL) for model in (SMALL, LARGE)},
    ),
    Item("gpu", "training on a GPU", "", dict.fromkeys(MODELS)),
    Item(
        "vllm",
        "served by vLLM 0.32 against transformers: log-probabilities past the window and YaRN's length; bf16 labels",
        "at most 5e-5; the same but for near ties",
        {
            TINY: by_tests("tests/serving/test_real_vllm.py", measured="log-probabilities labels"),
            SMALL: None,
            LARGE: None,
        },
    ),
    Item(
        "vllm-chat",
        "vLLM's chat API: the trained prompt, token by token, and a label for every ticket of `route --chat`",
        IDENTICAL,
        {TINY: by_tests("tests/data_prep/test_harmony_library.py tests/serving/test_real_chat.py", IDENTICAL)},
    ),
    Item(
        "llama-cpp",
        "served by llama.cpp against transformers, both with YaRN rounded as llama.cpp does: log-probabilities",
        "fp32 at most 1e-4; MXFP4, beside which it rounds activations to 8 bits, at most 0.3",
        {
            TINY: by_tests("tests/serving/test_llama_cpp.py", measured="tokens"),
            SMALL: None,
            LARGE: None,
        },
    ),
    Item(
        "vllm-lora",
        "adapters served by vLLM 0.32",
        "every factor, bit for bit",
        {
            TINY: by_tests(
                "tests/converters/test_foreign_peft.py::test_vllm_reads_the_factors_of_every_expert", "loader only"
            ),
            SMALL: None,
            LARGE: None,
        },
    ),
)
