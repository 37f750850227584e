# SPDX-License-Identifier: Apache-2.0
"""Recipes of the classes and their methods; and which methods are no user's."""

from __future__ import annotations

from tests.fuzz import references
from tests.fuzz.functions import LOGITS, LOSS, MIXED
from tests.fuzz.recipe import Recipe

PRUNER = (
    "pruner = visited_pruner({n})",
    "pruner = visited_pruner({n}, None, 'infobatch')",
    "pruner = visited_pruner({n}, track_forgetting=True)",
    "pruner = visited_pruner({n}, sharding='shard')",
)
# The classes that `Pruner(policy=...)` takes, with the names and proper values of their parameters.
POLICIES: dict[str, dict[str, str | tuple[str, ...]]] = {
    "adaptive.Adaptive": {"trim": "0.1"},
    "balanced.Balanced": {
        "policy": "policies.UCB()", "groups": ("torch.arange(40) % 3", "[0, 1] * 20"),
        "floor": ("None", "0.5", "2"), "class_shares": "None",
    },
    "covered.Covered": {"policy": ("'weighted'", "policies.UCB()"), "every": "3"},
    "epsilon_greedy.EpsilonGreedy": {"epsilon": "0.1"},
    "ies.IES": {"delta": "1e-3"},
    "infobatch.InfoBatch": {"prune_ratio": "0.5"},
    "orderdp.OrderDP": {"subset_share": "0.5", "top_share": "0.6"},
    "repb.RePB": {"prune_ratio": "0.5", "batch_size": "8"},
    "seta.SeTa": {"random_share": "0.1", "num_groups": "5", "window_scale": "0.9"},
    "static_subset.StaticSubset": {
        "ids": ("ascending_ids({k}, 40)", "[3, 1, 2]"), "num_samples": ("None", "40"),
    },
    "ucb.UCB": {"c": "1.0", "bonus": ("'variance'", "'std'"), "first_visit": "'zero'"},
    "weighted.Weighted": {"power": ("0.5", "1.0"), "rescale": "True", "trim": "0.1"},
}  # fmt: skip
KEEPS_ITSELF = ("OrderDP", "StaticSubset", "IES", "InfoBatch", "RePB", "SeTa")


def policy_recipes() -> list[Recipe]:
    found = []
    for place, arguments in POLICIES.items():
        name = place.split(".")[1]
        keep = "None" if name in KEEPS_ITSELF else "0.5"
        size = ", result.num_samples or 40" if name == "StaticSubset" else ""
        found.append(
            Recipe(
                f"policies.{place}",
                f"policies.{name}",
                arguments,
                then=(f"use_with_policy(result, {keep}{size})",),
                small=("num_samples",),
                late=("every", "ids", "groups", "floor", "class_shares"),
                aliases={"floor": ("group_floor",), "policy": ("rule",)},
                calls=("policy",) if "policy" in arguments else (),
                least=1,
            )
        )
    return found


def of_pruner(name: str, setup: tuple[str, ...] = PRUNER[:1], **more: object) -> list[Recipe]:
    """One recipe for each set-up."""
    fields = {"least": 2, **more}
    return [
        Recipe(f"pruner.Pruner.{name}", f"pruner.{name}", setup=(made,), **fields)  # type: ignore[arg-type]
        for made in setup
    ]


SIZES = {"batch_size": "4", "drop_last": ("True", "False")}
IDS = ("integers({b}, {n})", "integers({b}, {n}).int()")
UNSHARDED = PRUNER[:3]

PRUNERS = [
    Recipe(
        "pruner.Pruner",
        "Pruner",
        {
            "num_samples": "40", "keep": ("0.5", "10", "[0.5, 0.4]", "lambda epoch: 0.5"),
            "policy": ("'adaptive'", "'ucb'", "'uniform'", "policies.UCB()"), "period": "1",
            "warmup_epochs": "1", "anneal_epochs": "0", "epochs": "None", "groups": "None",
            "group_floor": "None", "class_shares": "None", "score": ("'loss'", "'el2n'"),
            "row_reduction": ("'mean'", "0.5"),
            "alpha": ("None", "0.5"), "track_forgetting": ("True", "False"), "seed": "{s}",
            "device": "'cpu'", "process_group": ("None", "False"),
            "sharding": "'replicate'", "shard_layout": "'contiguous'", "surplus": "'move'",
        },
        then=("use_pruner(result)",),
        aliases={
            "num_samples": ("ids",), "group_floor": ("floor",), "policy": ("FunctionPolicy",),
        },
        late=("policy",),
        calls=("keep", "policy"),
    ),
    Recipe(
        "pruner.Pruner",
        "Pruner",
        {
            "num_samples": "40", "keep": "0.5", "policy": "'weighted'",
            "groups": ("torch.arange(40) % 3", "[0, 1, 2, 2] * 10"),
            "class_shares": ("None", "'equal'", "{0: 1, 1: 2, 2: 3}"),
        },
        then=("use_pruner(result)",),
        aliases={"group_floor": ("floor",)},
        calls=("keep", "policy"),
    ),
    *of_pruner("set_epoch", PRUNER, arguments={"epoch": "3"}, writes=("pruner",)),
    *of_pruner(
        "is_selected", arguments={"sample_ids": IDS}, reference=references.is_selected
    ),
    *of_pruner("share_length", arguments={"drop_last": "True"}),
    *of_pruner("steps_per_epoch", least=31, arguments={**SIZES, "epoch": ("None", "1")}),
    *of_pruner("total_steps", least=31, arguments={"epochs": "9", **SIZES}, writes=("pruner",)),
    *of_pruner("locate_step", least=31, arguments={"step": "20", **SIZES}, writes=("pruner",)),
    *of_pruner("wrap", arguments={"dataset": "list(range({n}))"}, then=("result[0]",)),
    *of_pruner("sampler", arguments={"drop_last": "True"}, then=("list(result)",)),
    *of_pruner(
        "batch_sampler",
        arguments={
            **SIZES, "lengths": ("None", "integers({n}, 9)", "list(range({n}))"),
            "max_tokens": "None", "window": "4",
        },
        writes=("pruner",),  # the order of an epoch is kept
        then=("list(result)",),
    ),
    *of_pruner(
        "filter",
        PRUNER[:1],
        arguments={
            "stream": "range({n})", "key": ("None", "lambda item: item"), "decode": "None",
            "drop_last": "True",
        },
        then=("result.steps(4)",),
        writes=("pruner",),
    ),
    *of_pruner("unselected_sampler", arguments={"batch_size": "4"}, then=("list(result)",)),
    *of_pruner("rescale", UNSHARDED, arguments={"ids": IDS, "losses": "positive({b})"},
               aliases={"losses": ("values",)}),
    *of_pruner(
        "cross_entropy",
        PRUNER,
        arguments={
            **LOGITS, "ids": IDS, **LOSS, "sample_weight": ("None", "positive({b})"),
            **MIXED, "grad_scale": ("None", "torch.tensor(8.0)"), "class_dim": ("1", "-1"),
            "cu_seqlens": "None", "token_weight": "None", "num_items": "None",
        },
        writes=("pruner",),
        aliases={"ids": ("sample_ids",)},
    ),
    *of_pruner(
        "linear_cross_entropy",
        PRUNER,
        arguments={
            "hidden": "floats({b}, 4, seed={s})", "weight": "floats({c}, 4)",
            "target": "integers({b}, {c})", "ids": IDS, "bias": ("None", "floats({c})"),
            "sample_weight": ("None", "positive({b})"), "reduction": ("'mean'", "'sample'"),
            "num_items": "None", "class_weight": ("None", "positive({c})"),
            "ignore_index": "-100", "label_smoothing": ("0.0", "0.1"), "softcap": ("None", "5.0"),
            "z_loss": ("0.0", "0.01"), "keep_tokens": "None",
            "reference_loss": "None", "seed": "None", "chunk_rows": "None", "cu_seqlens": "None",
            "token_weight": ("None", "positive({b})"),
        },
        writes=("pruner",),
        aliases={"ids": ("sample_ids",), "hidden": ("logits",), "class_weight": ("weight",)},
    ),
    *of_pruner(
        "binary_cross_entropy",
        PRUNER,
        arguments={
            "logits": "floats({b}, {c}, seed={s})",
            "target": ("positive({b}, {c}).clamp(max=1.0)", "positive({b}, {c}) > 1"), "ids": IDS,
            "weight": ("None", "positive({c})"), "pos_weight": ("None", "positive({c})"),
            "reduction": ("'mean'", "'sum'", "'none'", "'sample'"),
            "sample_weight": ("None", "positive({b})"),
            "grad_scale": ("None", "torch.tensor(8.0)"), "num_items": "None",
        },
        writes=("pruner",),
        aliases={"ids": ("sample_ids",)},
    ),
    *of_pruner(
        "observe",
        UNSHARDED,
        arguments={
            "ids": IDS, "values": ("floats({b}, seed={s})", "torch.tensor(1.5)"),
            "correct": ("None", "flags({b})"),
        },
        writes=("pruner",),
        aliases={"ids": ("sample_ids",)},
        reference=references.observed,
    ),
    *of_pruner(
        "rescore",
        arguments={
            "model": "linear_model()", "loader": "loader({n})", "score": "None", "weight": "None",
            "ignore_index": "-100", "label_smoothing": "0.0",
        },
        writes=("pruner", "model"),
        raises=("RuntimeError",),
        aliases={"loader": ("batch", "inputs", "target", "ids")},
        partial=("loader", "score", "model", "weight"),
        calls=("score", "model"),
    ),
    *of_pruner(
        "resize",
        UNSHARDED[:2],
        arguments={"num_samples": "40", "groups": "None"},
        writes=("pruner",),
        then=("use_pruner(pruner)",),
        aliases={"num_samples": ("keep",)},
    ),
    *of_pruner(
        "load_state_dict",
        PRUNER,
        arguments={"state_dict": "pruner.state_dict()", "grow": "False"},
        writes=("pruner",),
    ),
]  # fmt: skip

TABLES = [
    Recipe("scores.table.ScoreTable", "ScoreTable",
           {"num_samples": "40", "device": "'cpu'", "alpha": "0.5", "first_visit": "'zero'",
            "row_reduction": "'mean'", "track_forgetting": "True"},
           then=("result.update(torch.arange(1), torch.ones(1))", "result.stats()['visited']")),
    *[
        Recipe("scores.table.ScoreTable.update", "table.update",
               {"ids": IDS, "values": "floats({b}, seed={s})", "correct": ("None", "flags({b})"),
                "alpha": ("None", "0.3")},
               setup=(made,), writes=("table",), reference=references.observed, least=1,
               aliases={"ids": ("sample_ids",)})
        for made in ("table = visited_table({n})",
                     "table = visited_table({n}, track_forgetting=True, first_visit='published')")
    ],
    Recipe("scores.table.ScoreTable.part", "table.part", {"sample_ids": "ascending_ids({k}, {n})"},
           setup=("table = visited_table({n})",), least=1,
           then=("assert result.num_samples == len(result.mean)",)),
    *[
        Recipe("scores.table.ScoreTable.load_state_dict", "table.load_state_dict",
               {"state_dict": "visited_table({n}, seed=1).state_dict()"},
               setup=("table = visited_table({n})",), writes=("table",), least=1)
    ],
]  # fmt: skip

SELECTOR = "selector = dynprune_cuda.BatchSelector(0.5, policy='weighted', rescale=True)"
BATCHES = [
    Recipe("batch_selection.BatchSelector", "dynprune_cuda.BatchSelector",
           {"keep": ("0.5", "3"), "by": ("'loss'", "'el2n'"),
            "policy": ("'top_k'", "'weighted'", "'percentile'", "'uniform'"), "rescale": "False",
            "epsilon": "0.1", "power": "1.0", "label_smoothing": "0.1", "ignore_index": "-100",
            "seed": "{s}", "device": "'cpu'", "process_group": "None", "over_ranks": "False"},
           then=("result.num_chosen(10)",
                 "if result.keep <= 8: result(floats(8, 3), integers(8, 3))"
                 " if result.by != 'excess' else None"), late=("keep",)),
    Recipe("batch_selection.BatchSelector.choose", "selector.choose", {"scores": "floats({n})"},
           setup=(SELECTOR,), writes=("selector",), least=1),
    Recipe("batch_selection.BatchSelector.num_chosen", "selector.num_chosen", {"num_rows": "9"},
           setup=(SELECTOR,)),
    Recipe("batch_selection.BatchSelector.__call__", "selector",
           {"logits": "floats({n}, {c}, seed={s})", "target": "integers({n}, {c})",
            "reference": "None"}, setup=(SELECTOR,), writes=("selector",), least=1,
           aliases={"logits": ("num_rows", "scores", "weights"),
                    "target": ("num_rows", "scores", "weights")}),
    Recipe("batch_selection.BatchSelector.take",
           "(lambda choice, tensors: selector.take(choice, tensors))",
           {"choice": "selector.choose(positive({n}))", "tensors": "floats({n}, 2)"},
           setup=(SELECTOR,), least=1),
    Recipe("batch_selection.BatchSelector.load_state_dict", "selector.load_state_dict",
           {"state_dict": "selector.state_dict()"}, setup=(SELECTOR,), writes=("selector",)),
]  # fmt: skip

FOLLOWED = "pruner = visited_pruner({n})"
DATA = [
    Recipe("data.device_loader.DeviceLoader", "data.DeviceLoader",
           {"*tensors": "floats({n}, 2)", "pruner": "pruner", "batch_size": "4",
            "drop_last": "True", "sampler": "None", "transforms": "()"},
           setup=(FOLLOWED,), then=("list(result)",), least=2,
           aliases={"*tensors": ("tensors",)}),
    Recipe("data.device_loader.DeviceLoader.load_state_dict", "loader.load_state_dict",
           {"state_dict": "loader.state_dict()"},
           setup=(FOLLOWED, "loader = data.DeviceLoader(floats({n}, 2), pruner=pruner,"
                            " batch_size=4)"), writes=("loader",), least=2,
           aliases={"state_dict": ("state",)}),
    Recipe("data.samplers.ResumableSampler.load_state_dict", "sampler.load_state_dict",
           {"state_dict": "sampler.state_dict()"},
           setup=(FOLLOWED, "sampler = pruner.batch_sampler(4)"), writes=("sampler",), least=2,
           aliases={"state_dict": ("state",)}),
    Recipe("data.records.EpochRecords", "data.EpochRecords",
           {"source": "pruner", "dataset": "list(range({n}))", "drop_last": "True"},
           setup=(FOLLOWED,), writes=("pruner", "source"), then=("result[0]",), least=5),
    Recipe("data.collate.CollateWithIds", "data.CollateWithIds", {"collate": "list"}),
    Recipe("data.indexed.IndexedDataset", "data.IndexedDataset",
           {"dataset": "list(range(40))", "num_samples": ("None", "40")}, then=("len(result)",)),
    Recipe("data.samplers.EpochBatchSampler", "data.EpochBatchSampler",
           {"source": "pruner", **SIZES}, setup=(FOLLOWED,), then=("list(result)",), least=2),
    Recipe("data.samplers.EpochSampler", "data.EpochSampler",
           {"source": "pruner", "drop_last": "True"}, setup=(FOLLOWED,), then=("list(result)",),
           least=2),
    Recipe("data.bucketing.BucketBatchSampler", "data.BucketBatchSampler",
           {"source": "pruner", **SIZES, "lengths": ("integers({n}, 9)", "list(range({n}))"),
            "max_tokens": ("None", "200"), "window": "4"}, writes=("pruner", "source"),
           setup=(FOLLOWED,), then=("list(result)",), least=2),
    Recipe("data.unselected.UnselectedBatchSampler", "data.unselected.UnselectedBatchSampler",
           {"source": "pruner", "batch_size": "4"}, setup=(FOLLOWED,), then=("list(result)",),
           least=2),
    Recipe("data.streams.FilteredStream", "data.FilteredStream",
           {"source": "pruner", "stream": "range({n})", "key": "None", "decode": "None",
            "drop_last": "True"}, setup=(FOLLOWED,), then=("repr(result)",), least=2),
    Recipe("data.streams.FilteredStream.samples_per_worker", "stream.samples_per_worker",
           {"num_workers": "2"}, setup=(FOLLOWED, "stream = pruner.filter(range({n}))"), least=2),
    Recipe("data.streams.FilteredStream.steps", "stream.steps",
           {"batch_size": "4", "num_workers": "2", "drop_last": "True"},
           setup=(FOLLOWED, "stream = pruner.filter(range({n}))"), least=2),
    Recipe("distributed.shard.Shard", "Shard",
           {"num_samples": "40", "rank": "1", "size": "3",
            "layout": ("'contiguous'", "'strided'")},
           then=("len(result)", "repr(result)")),
    Recipe("distributed.shard.Shard.ids", "Shard(40, 1, 3).ids", {"device": "'cpu'"}),
    Recipe("distributed.ranks.resolve", "distributed.resolve",
           {"process_group": ("None", "False")}),
]  # fmt: skip

KEPT = ("pruner = visited_pruner({n})", "history = dynprune_cuda.KeptHistory(pruner)",
        "history.record()")  # fmt: skip
CURVE = {"curve": "'linear'", "first_epoch": "0"}
CALLED = ("assert 0 <= result(3) <= 1",)
# Trains on nothing: of zero epochs, or of one on a tiny data set.
MEASURE = {
    "make_model": "linear_model", "loader": "loader(20)", "epochs": "1", "seeds": "[1]",
    "train": "None", "optimizer": "None", "about": "'x'", "progress": "False",
}  # fmt: skip
OTHERS = [
    Recipe("plotting.KeptHistory", "dynprune_cuda.KeptHistory",
           {"pruner": "pruner", "max_samples": "10"}, setup=KEPT[:1], then=("result.record()",),
           least=2),
    Recipe("plotting.KeptHistory.load_state_dict", "history.load_state_dict",
           {"state_dict": "history.state_dict()"}, setup=KEPT, writes=("history",), least=2),
    Recipe("plotting.plot_kept", "dynprune_cuda.plot_kept", {"history": "history", "ax": "None"},
           setup=KEPT, least=2),
    Recipe("_schedule.schedule.same_steps", "dynprune_cuda.same_steps",
           {"total_steps": "100", "num_samples": "40", "batch_size": "4",
            "epochs": ("None", "10", "20"), "drop_last": "True"}),
    Recipe("hooks.track_gradient_norm", "track_gradient_norm",
           {"tensor": "floats({b}, {c}).requires_grad_()", "sample_ids": "integers({b}, {n})",
            "into": "table", "scale": ("1.0", "torch.tensor(2.0)")},
           setup=("table = visited_table({n})",), least=1, writes=("tensor", "table"),
           aliases={"into": ("ids", "values")}, late=("sample_ids",), calls=("into",),
           then=("if tensor.requires_grad and not abstract(tensor): tensor.sum().backward()",)),
    *[
        Recipe(f"schedules.{name}", f"schedules.{name}", {**arguments, **CURVE}, then=CALLED)
        for name, arguments in {
            "Ramp": {"start": "0.2", "end": "0.8", "epochs": "9"},
            "growing": {"start": "0.2", "end": "0.8", "epochs": "9"},
            "shrinking": {"start": "0.8", "end": "0.2", "epochs": "9"},
            "Wave": {"low": "0.2", "high": "0.8", "cycle": "4"},
            "oscillating": {"low": "0.2", "high": "0.8", "cycle": "4"},
        }.items()
    ],
    Recipe("schedules.SelectionWindow", "schedules.SelectionWindow",
           {"start": "0.5", "end": "0.9", "interrupt": "2"}, then=("result(0.7, 3)",)),
    Recipe("stats.Stats.scalars", "visited_table(9).stats().scalars", {"prefix": "'pruner/'"}),
    Recipe("stats.Stats.log", "visited_table(9).stats().log",
           {"writer": "writer()", "step": "3", "prefix": "'pruner/'"}, writes=("writer",)),
    Recipe("policies.paper.paper", "policies.paper", {"rule": "'ucb'"}),
    Recipe("policies.registry.register", "in_fresh_registry(policies.register)",
           {"name": "'mine'", "make": "policies.UCB"}),
    Recipe("policies.registry.resolve", "policies.resolve",
           {"policy": ("'ucb'", "policies.UCB()")}),
    Recipe("policies.protocol.Policy.select", "policies.UCB().select",
           {"table": "visited_table({n})", "k": "{k}", "seed": "{s}"}, least=1),
    Recipe("policies.adaptive.Adaptive.tilt", "policies.Adaptive().tilt",
           {"table": "visited_table({n})"}, least=1),
    Recipe("static_scores.forgetting.ForgettingCounter", "static_scores.ForgettingCounter",
           {"num_samples": "40", "device": "'cpu'"}),
    Recipe("static_scores.forgetting.ForgettingCounter.cross_entropy", "counter.cross_entropy",
           {"logits": LOGITS["logits"], "labels": LOGITS["target"], "ids": "integers({b}, {n})"},
           setup=("counter = static_scores.ForgettingCounter({n})",), writes=("counter",), least=1,
           aliases={"labels": ("target",), "ids": ("sample_ids",)}),
    Recipe("static_scores.measures.random_scores", "static_scores.random_scores",
           {"num_samples": "40", "seed": "{s}"}, then=("result.top(0.5)",)),
    Recipe("static_scores.measures.el2n_scores", "static_scores.el2n_scores", MEASURE,
           small=("epochs",), calls=("make_model", "train", "optimizer")),
    Recipe("static_scores.measures.grand_scores", "static_scores.grand_scores",
           {**MEASURE, "layers": ("'last'", "'all'"), "chunk_size": "None"},
           small=("epochs",), calls=("make_model", "train", "optimizer")),
    Recipe("static_scores.forgetting.forgetting_scores", "static_scores.forgetting_scores",
           MEASURE, small=("epochs",), calls=("make_model", "train", "optimizer")),
    Recipe("static_scores.result.StaticScores", "static_scores.StaticScores",
           {"values": "positive({n})", "method": "'el2n'", "seeds": "(1, 2)", "epochs": "3",
            "about": "'digits'"}, least=1, then=("result.top(0.5)", "repr(result)")),
    *[
        Recipe(f"static_scores.result.StaticScores.{name}",
               f"scores.{name}", {"keep": ("0.5", "{k}"), "seed": "{s}"},
               setup=("scores = static_scores.StaticScores(positive({n}), 'x')",), least=1)
        for name in ("top", "subset")
    ],
    Recipe("static_scores.result.StaticScores.save",
           "static_scores.StaticScores(positive(9), 'x').save",
           {"path": "saved_scores(5)"}, raises=("OSError",)),
    Recipe("static_scores.result.StaticScores.load", "static_scores.StaticScores.load",
           {"path": "saved_scores(20)", "num_samples": ("None", "20"), "method": "'el2n'",
            "seeds": ("None", "(1, 2)"), "epochs": "10", "about": "'digits'"},
           raises=("OSError",), aliases={"path": ("scores",)}),
]  # fmt: skip

# Saved states of which leaves were changed; the numbers are drawn for each case.
TAMPERED = [
    *[
        Recipe("pruner.Pruner.load_state_dict", "pruner.load_state_dict",
               {"state_dict": "tampered(pruner.state_dict(), {seed}, {changes})"},
               setup=(made,), writes=("pruner",), reference=references.loaded("pruner"),
               then=("pruner.set_epoch(pruner.epoch + 1)",), least=2, tampers=True)
        for made in (*PRUNER, "pruner = visited_pruner({n}, 0.5, 'weighted')")
    ],
    Recipe("scores.table.ScoreTable.load_state_dict", "table.load_state_dict",
           {"state_dict": "tampered(table.state_dict(), {seed}, {changes})"},
           setup=("table = visited_table({n}, track_forgetting=True)",), writes=("table",),
           reference=references.loaded("table"), least=2, tampers=True),
    Recipe("static_scores.result.StaticScores.load", "static_scores.StaticScores.load",
           {"path": "tampered_file(tampered(state_of_scores({n}), {seed}, {changes}))"},
           aliases={"path": ("scores",)},
           reference=references.intact_scores, least=2, tampers=True),
    Recipe("batch_selection.BatchSelector.load_state_dict", "selector.load_state_dict",
           {"state_dict": "tampered(selector.state_dict(), {seed}, {changes})"},
           setup=(SELECTOR,), writes=("selector",), reference=references.loaded("selector"),
           tampers=True),
    Recipe("plotting.KeptHistory.load_state_dict", "history.load_state_dict",
           {"state_dict": "tampered(history.state_dict(), {seed}, {changes})"},
           setup=KEPT, writes=("history",), reference=references.loaded("history"), least=2,
           tampers=True),
]  # fmt: skip

RECIPES = [
    *policy_recipes(), *PRUNERS, *TABLES, *BATCHES, *DATA, *OTHERS, *TAMPERED,
]  # fmt: skip

# Public names that need no recipe, by the reason.
UNTOUCHED = {
    "the run calls it, with a table and numbers that it made": r"policies\..*\.(ranking|select"
    r"|weigh|remember|initial_memory|settings|check_count|check_size|fixed_count|floors|quotas|counts)",
    "the run calls it, with what it checked": r"scores\.table\.ScoreTable\.(take|told|checked"
    r"|update_target)|stats\.Stats(\.merged)?|functional\.(tilted\.Tilted\.ranking"
    r"|rules\.Trimmed\.(without|counts)|ranking\.FixedIds\.count)|scores\.history\.History(\.part)?"
    r"|data\.streams\.FilteredStream\.update",
    "the loader calls it": r"data\.samplers\.\w+\.(iterate|batches_in|ids_after|batches_before)"
    r"|data\.bucketing\.\w+\.(ids_after|batches_before)|data\.device_loader\.DeviceLoader\.gather",
    "needs a library that is not always there": r"data\.seekable\.SeekableDataset",
    "a result, which only the package makes": r"functional\.\w*cross_entropy\.\w*ScoredLoss"
    r"|batch_selection\.BatchChoice|rescoring\.Rescored|functional\.ranking\.Ranking",
    "internal to collectives; all ranks call it with what they agreed on": r"distributed\.ranks\."
    r"(Ranks(\..*)?|checksum)|distributed\.shard\.Shard\.(ids_at|positions_of|owner_of|counts|num_below)",
}
