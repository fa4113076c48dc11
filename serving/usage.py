"""The part of a model card that says how to serve a run's model: with the prompt of its training, and its labels."""

from __future__ import annotations

import json
from pathlib import Path

from data_prep.prepared import Routing, load_routing

_CARD = """
## Serving

Trained on one prompt, byte for byte; the ticket stands where `TICKET` does, with `< |` for `<|` in its text:

```text
{before}TICKET{after}
```

The answer is one of these {count} labels and the token `{end}`. Let the server choose among them only:

```json
{labels}
```

vLLM, which batches requests as they come (`structured_outputs` is `guided_choice` before vLLM 0.11), with the arguments
that fit this model and the GPUs (`--dryrun` prints them):

```sh
nemo-run serve FOLDER
curl http://localhost:8000/v1/completions -H 'Content-Type: application/json' -d @request.json
```

```json
{request}
```

A whole table, with retries and where it stopped: `nemo-run route tickets.csv --endpoint http://localhost:8000 --data
PREPARED_FOLDER --out routed.csv`. vLLM's chat API, started as `nemo-run serve` does, renders the same prompt from a
developer's and a user's message at `reasoning_effort` low. In transformers:

```python
{python}
```
"""

_PYTHON = """from transformers import pipeline

generate = pipeline("text-generation", model="FOLDER")
tokenizer = generate.tokenizer
before, after = {before!r}, {after!r}
answers = [tokenizer.encode(label + {end!r}, add_special_tokens=False) for label in {labels!r}]


def route(ticket):
    prompt = before + ticket.replace("<|", "< |") + after
    start = len(tokenizer.encode(prompt, add_special_tokens=False))

    def allowed(batch, tokens):  # only what leads to a label
        done = tokens[start:].tolist()
        return [answer[len(done)] for answer in answers if answer[: len(done)] == done and len(answer) > len(done)]

    most = max(map(len, answers))
    answer = generate(prompt, max_new_tokens=most, do_sample=False, prefix_allowed_tokens_fn=allowed,
                      return_full_text=False, add_special_tokens=False)
    return answer[0]["generated_text"].removesuffix({end!r})"""


def usage_of(data: Path) -> str:
    """Markdown for the model card, from a prepared folder; empty for conversations, which have no labels."""
    routing = load_routing(data)
    return _usage(routing) if routing.before is not None else ""


def _usage(routing: Routing) -> str:
    before, after = routing.around
    labels = list(routing.answers)
    request = {
        "model": "tickets",
        "prompt": f"{before}TICKET{after}",
        "temperature": 0,
        "max_tokens": max(len(label.encode()) for label in labels) + 1,
        "add_special_tokens": False,
        "structured_outputs": {"choice": labels},
    }
    return _CARD.format(
        before=before,
        after=after,
        end=routing.end,
        count=len(labels),
        labels=json.dumps(labels, ensure_ascii=False),
        request=json.dumps(request, ensure_ascii=False, indent=1),
        python=_PYTHON.format(before=before, after=after, end=routing.end, labels=labels),
    )
