"""The tutorial's task table, measured: what each family answers, how exactly, and what it costs. About a minute.

    python examples/compare_tasks.py

Each program is learned briefly on digits (the costs do not depend on how well), then every task is run and timed. Beside what is measured
stand the ratings of Bhattacharya, The Foundations of Generative AI (2025), sections 8.17, 10.15 and 11.16, where the text gives them.
"""

import dataclasses
from typing import Any

import ppl_dgm as dgm
from ppl_dgm.registry import resolve
from ppl_dgm.text import table

GREY: dict[str, Any] = {"observed": 64, "values": 17}
PROGRAMS: dict[str, dict[str, Any]] = {
    "MixtureOfCategoricals": {**GREY, "components": 10}, "Circuit": GREY, "RealNVP": GREY, "VAE": GREY, "TopDownVAE": GREY, "DiffusionChain": GREY,
}  # fmt: skip
RATINGS = {  # task -> rating in the text, per family: ✓✓ ✓ ~ × ××
    "VAE": {"learn": "✓", "score": "~", "sample": "✓✓", "infer": "✓✓"},
    "TopDownVAE": {"learn": "✓", "score": "~", "sample": "✓✓", "infer": "✓✓"},
    "RealNVP": {"learn": "✓", "score": "✓✓", "sample": "✓", "infer": "✓✓"},
    "DiffusionChain": {"learn": "✓✓", "score": "✓", "sample": "×", "infer": "~"},
}


def briefly(program: dgm.Program) -> Any:
    """The program's own learner, for five epochs where it counts epochs."""
    method = resolve(program.default_method("learn") or "svi")
    known = {field.name for field in dataclasses.fields(method)}
    return dataclasses.replace(method, **({"epochs": 5} if "epochs" in known else {}))


def main() -> None:
    digits = dgm.data.digits()
    rows = []
    for name, arguments in PROGRAMS.items():
        program = getattr(dgm.models, name)(**arguments)
        fit = dgm.learn(program, digits, method=briefly(program), seed=0)
        card = dgm.card(program, digits.valid)
        per_example = {**card.seconds, "learn": fit.cost.seconds / max(1, len(fit.history)) / len(digits.train)}
        for task, answer in card.answers.items():
            passes = card.passes if task == "sample" else answer.passes
            cost = f"{per_example[task] * 1e3:.2f}" if task in per_example else "-"
            rating = RATINGS.get(name, {}).get(task, "")
            rows.append(
                (
                    name,
                    task,
                    rating,
                    answer.kind.replace("_", " "),
                    passes or "-",
                    answer.depth or "-",
                    cost,
                    answer.how,
                )
            )
    print(table(("program", "task", "text", "how exact", "passes", "serial depth", "ms per example", "how"), rows))
    print(
        "learn: ms per example and pass over the data. The text rates scoring ~ for the VAE and ✓ for diffusion; both are lower bounds here."
    )


if __name__ == "__main__":
    main()
