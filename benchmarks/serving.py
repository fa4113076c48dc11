"""Tickets a second through one server: all labels scored as before, all labels scored now, the constrained answer.

    nemo-run serve runs/NAME                                    # in another terminal
    python benchmarks/serving.py runs/NAME http://localhost:8000

"Before" is one request a ticket with all prompts echoed, one a label, as this package asked until it knew the labels'
tree. The ways take turns on tickets of their own, so that none finds another's prompts in the server's cache, and what
else the machine does meets them alike; afterwards the scores of the same tickets are compared.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import requests

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_prep.prepared import load_prepared
from serving.endpoint import AT_ONCE, Endpoint

ROUNDS = 6


def echoed(url: str, model: str, session: requests.Session, prompt: list[int], answers: list[list[int]]) -> np.ndarray:
    """Log-probabilities of the answers, (answers,), from those of whole prompts."""
    body: dict[str, Any] = {"model": model, "prompt": [[*prompt, *answer] for answer in answers], "max_tokens": 0}
    body |= {"echo": True, "logprobs": 1, "temperature": 0, "add_special_tokens": False}
    choices = session.post(f"{url}/completions", json=body, timeout=300).json()["choices"]
    choices.sort(key=lambda choice: choice["index"])
    given = [choice["logprobs"]["token_logprobs"] for choice in choices]
    return np.array([sum(tokens[-len(answer) :]) for tokens, answer in zip(given, answers, strict=True)])


def main() -> None:
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="finished run, with data/ and exported/")
    parser.add_argument("url")
    parser.add_argument("--tickets", type=int, default=240, help="for each way")
    options = parser.parse_args()
    prepared = load_prepared(options.run / "data")
    tokenizer = AutoTokenizer.from_pretrained(options.run / "exported")
    answers = [tokenizer.encode(answer, add_special_tokens=False) for answer in prepared.completions.values()]
    texts = [ticket.input for ticket in prepared.training]
    prompts = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=AT_ONCE))
    with Endpoint(options.url) as endpoint, ThreadPoolExecutor(AT_ONCE) as pool:
        endpoint.constraint(texts[0])
        endpoint.score(prompts[0], answers)

        def before(places: Sequence[int]) -> list[Any]:
            ask = lambda place: echoed(endpoint.url, endpoint.model, session, prompts[place], answers)  # noqa: E731
            return list(pool.map(ask, places))

        ways: dict[str, Callable[[Sequence[int]], list[Any]]] = {
            "all labels, echoed (before)": before,
            "all labels, by their tree": lambda places: list(
                endpoint.at_once(lambda place: endpoint.score(prompts[place], answers)[0], places)
            ),
            "constrained answer": lambda places: list(
                endpoint.at_once(lambda place: endpoint.choose(texts[place], list(prepared.routing.answers)), places)
            ),
        }
        seconds, fresh = dict.fromkeys(ways, 0.0), iter(range(1, len(prompts)))
        for _ in range(ROUNDS):
            for name, way in ways.items():
                places = [next(fresh) for _ in range(options.tickets // ROUNDS)]
                started = time.perf_counter()
                way(places)
                seconds[name] += time.perf_counter() - started
        same = range(len(prompts) - 40, len(prompts))
        old, new = (np.stack(way(same)) for way in list(ways.values())[:2])
    tokens = np.mean([len(prompt) for prompt in prompts])
    print(
        f"{endpoint.model} at {endpoint.url}, {AT_ONCE} at a time: {len(answers)} labels, {tokens:.0f} tokens a prompt"
    )
    print(f"{'way':30} {'tickets/s':>10} {'ratio':>7}")
    slow = next(iter(seconds.values()))
    for name, spent in seconds.items():
        print(f"{name:30} {options.tickets / spent:10.1f} {slow / spent:7.2f}")
    print(f"scores of the same 40 tickets: largest difference {np.abs(old - new).max():.1e}, same best label "
          f"{(old.argmax(axis=1) == new.argmax(axis=1)).sum()} of 40")  # fmt: skip


if __name__ == "__main__":
    main()
