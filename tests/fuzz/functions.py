# SPDX-License-Identifier: Apache-2.0
"""Recipes of the functions: selection, scoring, score updates, and what ranks."""

from __future__ import annotations

from tests.fuzz import references
from tests.fuzz.recipe import Recipe

SEED = ("{s}", "torch.tensor({s})")
ORDER = ("'random'", "'ascending'")
FLOAT_TABLE = "positive({n}, seed={s})"
# Errors of a selection name what the ranking was made of.
RULE = {"rule": ("weights", "scores", "mean", "ids", "seed")}

RULES = (
    f"Ranking.by_score({FLOAT_TABLE}, random_share=0.3)",
    f"Ranking.by_ucb({FLOAT_TABLE}, {FLOAT_TABLE})",
    f"Ranking.by_ucb1({FLOAT_TABLE}, counts({{n}}), step=9)",
    f"Ranking.by_weight({FLOAT_TABLE})",
    f"Ranking.by_score_weight({FLOAT_TABLE}, power=0.5)",
    f"Tilted({FLOAT_TABLE})",
    f"Trimmed(Tilted({FLOAT_TABLE}), 0.1)",
    "Uniform()",
    "FixedIds(ascending_ids({k}, {n}))",
)  # fmt: skip
WEIGHED = RULES[3:7]

VALUES = {
    "top_k": ({"scores": "floats({n}, seed={s})"}, references.top_k),
    "epsilon_greedy": (
        {"scores": "floats({n}, seed={s})", "epsilon": ("0.3", "0.0", "1.0")},
        references.epsilon_greedy,
    ),
    "ucb": (
        {
            "mean": "floats({n}, seed={s})", "variance": "positive({n})", "c": ("1.0", "-0.5"),
            "bonus": ("'variance'", "'std'"),
        },
        references.ucb,
    ),
    "ucb1": (
        {"mean": "floats({n}, seed={s})", "count": "counts({n})", "c": "1.5", "step": "40.0"},
        references.ucb1,
    ),
    "weighted": ({"weights": "positive({n}, seed={s})"}, references.weighted),
}  # fmt: skip


def selections() -> list[Recipe]:
    """Of whole tables, and of the shard of a single process."""
    found = []
    for name, (values, reference) in VALUES.items():
        found.append(
            Recipe(
                f"functional.selection.select_{name}",
                f"F.select_{name}",
                {**values, "k": "{k}", "seed": SEED, "order": ORDER},
                reference=reference,
            )
        )
        found.append(
            Recipe(
                f"sharded.selection.select_{name}",
                f"sharded.select_{name}",
                {
                    **values, "k": "{k}", "shard": "Shard({n}, 0, 1)", "seed": "{s}",
                    "process_group": "None",
                },
                reference=reference,
                raises=("RuntimeError",),
            )
        )  # fmt: skip
    return found


SELECTION = [
    *selections(),
    Recipe(
        "functional.selection.select_uniform",
        "F.select_uniform",
        {"num_samples": "{n}", "k": "{k}", "seed": SEED, "device": "'cpu'", "order": ORDER},
        reference=references.uniform,
    ),
    Recipe(
        "sharded.selection.select_uniform",
        "sharded.select_uniform",
        {"k": "{k}", "shard": "Shard({n}, 0, 1)", "seed": "{s}", "device": "'cpu'"},
        reference=references.uniform,
    ),
    Recipe(
        "functional.selection.permutation",
        "F.permutation",
        {"num_samples": "{n}", "seed": SEED, "device": "'cpu'"},
        reference=references.uniform,
    ),
    Recipe(
        "functional.selection.select",
        "F.select",
        {
            "rule": RULES, "num_samples": "{n}", "k": "{k}", "seed": "{s}", "device": "'cpu'",
            "order": ORDER,
        },
        aliases=RULE,
        reference=references.by_rule,
        least=1,
    ),
    Recipe(
        "sharded.selection.select",
        "sharded.select",
        {
            "rule": RULES, "k": "{k}", "shard": "Shard({n}, 0, 1)", "seed": "{s}",
            "process_group": "None", "device": "'cpu'",
        },
        aliases=RULE,
        reference=references.by_rule,
        least=1,
        raises=("RuntimeError",),
    ),
    Recipe(
        "functional.selection.select_rescaled",
        "F.select_rescaled",
        {"rule": WEIGHED, "num_samples": "{n}", "k": "{k}", "seed": "{s}"},
        aliases=RULE,
        reference=references.rescaled,
        least=1,
    ),
    Recipe(
        "sharded.selection.select_rescaled",
        "sharded.select_rescaled",
        {
            "rule": WEIGHED, "k": "{k}", "shard": "Shard({n}, 0, 1)", "seed": "{s}",
            "process_group": "None",
        },
        aliases=RULE,
        reference=references.rescaled,
        least=1,
        raises=("RuntimeError",),
    ),
    Recipe(
        "functional.inclusion.inclusion_probabilities",
        "F.inclusion_probabilities",
        {"weights": "positive({n}, seed={s})", "k": "{k}"},
        reference=references.inclusion,
    ),
]  # fmt: skip

# What a ranking was made of is judged by a selection with it.
SELECT_WITH_IT = (
    "values = result.values",
    "F.select(result, len(values), len(values) // 2, seed=1) if not abstract(values) else None",
)


def ranking(name: str, **arguments: str | tuple[str, ...]) -> Recipe:
    # A weight may turn out to be negative when the kernel reads it.
    return Recipe(
        f"functional.ranking.Ranking.{name}",
        f"Ranking.{name}",
        dict(arguments),
        then=SELECT_WITH_IT if name != "by_weight" else (),
    )


RANKINGS = [
    ranking("by_score", scores="floats({n}, seed={s})", random_share=("0.0", "0.3")),
    ranking(
        "by_ucb", mean="floats({n})", variance="positive({n})", c="1.0",
        bonus=("'variance'", "'std'"),
    ),
    ranking("by_ucb1", mean="floats({n})", count="counts({n})", c="1.0", step="40.0"),
    ranking("by_weight", weights="positive({n})", start=("0.0", "0.4")),
    ranking(
        "by_score_weight", scores="floats({n})", power=("0.5", "1.0"), start=("0.0", "0.9")
    ),
    Recipe("functional.ranking.Ranking.num_random", "Ranking.by_score(floats(9)).num_random",
           {"k": "3"}),
    Recipe("functional.ranking.FixedIds", "FixedIds",
           {"ids": ("ascending_ids({k}, {n})", "[3, 1, 2]", "np.arange(5)")}, least=1,
           then=("assert result.tensor.dtype == torch.int64",)),
    Recipe("functional.tilted.Tilted", "Tilted",
           {"scores": "floats({n}, seed={s})", "start": ("0.0", "0.5")}, least=1,
           then=SELECT_WITH_IT),
    Recipe("functional.rules.Trimmed", "Trimmed",
           {"ranking": ("Tilted(positive({n}))", "Ranking.by_score_weight(positive({n}))"),
            "share": "0.1", "revisited": "0.1"}, least=1,
           then=("n = len(result.ranking.values)", "F.select(result, n, n // 2, seed=1)")),
]  # fmt: skip

TABLE = {
    "mean": "floats({n}, seed={s})",
    "variance": "positive({n})",
    "count": ("counts({n})", "counts({n}).long()"),
}
TABLE_OPTIONS = {
    "alpha": ("0.5", "1.0"),
    "first_visit": ("'zero'", "'published'"),
    "non_finite_count": ("None", "counts({n})"),
    "last_non_finite": ("None", "flags({n})"),
}
ROWS = ("'mean'", "'sum'", "'max'", "0.5")
FORGETTING = {"last_correct": "flags({n})", "forget_count": ("None", "counts({n})")}
LOGITS = {"logits": "floats({b}, {c}, seed={s})", "target": "integers({b}, {c})"}
LOSS = {
    "weight": ("None", "positive({c})"),
    "ignore_index": ("-100", "0"),
    "label_smoothing": ("0.0", "0.1"),
    "reduction": ("'none'", "'mean'", "'sum'"),
}
MIXED = {"target_b": "integers({b}, {c}, 1)", "lam": ("0.3", "positive({b}).clamp(max=1)")}
UNMIXED = {"target_b": "None", "lam": "None"}
PROBABILITIES = {**UNMIXED, "target": "positive({b}, {c})", "ignore_index": "-100"}


def scorings() -> list[Recipe]:
    found = []
    for mixing in (UNMIXED, MIXED, PROBABILITIES):
        found.append(
            Recipe(
                "functional.cross_entropy.scored_cross_entropy",
                "F.scored_cross_entropy",
                {**LOGITS, **LOSS, **mixing, "class_dim": ("1", "-1")},
                reference=references.cross_entropy,
                raises=("NotImplementedError",),
            )
        )
        found.append(
            Recipe(
                "functional.cross_entropy_step.scored_cross_entropy_step_",
                "F.scored_cross_entropy_step_",
                {
                    **LOGITS, "sample_ids": "integers({b}, {n}, 2)", **TABLE, **TABLE_OPTIONS,
                    **FORGETTING, **LOSS, **mixing,
                    "score": ("'loss'", "'el2n'", "'entropy'", "'margin'"),
                    "sample_weight": ("None", "positive({b})"),
                    "grad_scale": ("None", "torch.tensor(8.0)"),
                    "ticket": ("None", "torch.zeros(1, dtype=torch.int32)"),
                    "row_reduction": ROWS, "class_dim": "1", "token_weight": "None",
                    "num_items": "None",
                },
                reference=references.step,
                writes=references.COLUMNS,
                raises=("NotImplementedError",),
                least=1,
            )
        )  # fmt: skip
    return found


SCORING = [
    *scorings(),
    Recipe(
        "functional.score_updates.update_scores_",
        "F.update_scores_",
        {
            **TABLE, "sample_ids": "integers({b}, {n}, 2)", "values": "floats({b}, seed={s})",
            **TABLE_OPTIONS, "correct": "flags({b})", **FORGETTING, "row_reduction": ROWS,
        },
        reference=references.update,
        writes=references.COLUMNS,
        raises=("NotImplementedError",),
        least=1,
    ),
    Recipe(
        "functional.cross_entropy.last_layer_grand",
        "F.last_layer_grand",
        {"el2n": "positive({b})", "features": "floats({b}, {c})", "bias": ("True", "False")},
        reference=references.last_layer_grand,
    ),
    Recipe(
        "functional.linear_cross_entropy.scored_linear_cross_entropy",
        "F.scored_linear_cross_entropy",
        {
            "hidden": "floats({b}, 4, seed={s})", "weight": "floats({c}, 4)",
            "target": "integers({b}, {c})", "bias": ("None", "floats({c})"),
            "sample_weight": ("None", "positive({b})"), "reduction": ("'mean'", "'sum'"),
            "sample_ids": "None", "num_items": "None", "class_weight": ("None", "positive({c})"),
            "ignore_index": "-100", "label_smoothing": ("0.0", "0.1"), "softcap": ("None", "5.0"),
            "z_loss": ("0.0", "0.01"), "keep_tokens": "None",
            "reference_loss": "None", "seed": "{s}", "chunk_rows": "None",
        },
        raises=("NotImplementedError",),
        aliases={"hidden": ("logits",), "class_weight": ("weight",)},
    ),
    Recipe(
        "functional.binary_cross_entropy.scored_binary_cross_entropy",
        "F.scored_binary_cross_entropy",
        {
            "logits": "floats({b}, {c}, seed={s})",
            "target": ("positive({b}, {c}).clamp(max=1.0)", "positive({b}, {c}) > 1"),
            "weight": ("None", "positive({c})", "positive({b}, {c})"),
            "pos_weight": ("None", "positive({c})"), "reduction": ("'none'", "'mean'", "'sum'"),
        },
        raises=("NotImplementedError",),
    ),
    Recipe(
        "functional.binary_cross_entropy.scored_binary_cross_entropy_step_",
        "F.scored_binary_cross_entropy_step_",
        {
            "logits": "floats({b}, {c}, seed={s})",
            "target": ("positive({b}, {c}).clamp(max=1.0)", "positive({b}, {c}) > 1"),
            "sample_ids": "integers({b}, {n}, 2)", **TABLE, **TABLE_OPTIONS, **FORGETTING,
            "weight": ("None", "positive({c})"), "pos_weight": ("None", "positive({c})"),
            "reduction": ("'mean'", "'sum'", "'none'", "'sample'"),
            "score": ("'loss'", "'el2n'", "'entropy'", "'margin'"),
            "sample_weight": ("None", "positive({b})"), "row_reduction": ROWS,
            "grad_scale": ("None", "torch.tensor(8.0)"),
            "ticket": ("None", "torch.zeros(1, dtype=torch.int32)"), "num_items": "None",
        },
        writes=references.COLUMNS,
        raises=("NotImplementedError",),
        least=1,
    ),
    Recipe("functional.errors.check_errors", "F.check_errors", {"device": "'cpu'"}),
]  # fmt: skip

RECIPES = [*SELECTION, *RANKINGS, *SCORING]
