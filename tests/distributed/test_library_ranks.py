# SPDX-License-Identifier: Apache-2.0
"""Streaming libraries on two processes with two workers each: equal steps, every sample once."""

import itertools

import pytest
import ranks
import stream_libraries as libraries

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
FILES = [*libraries.STREAMS, *libraries.SEEKABLE]
CASES = [(library, "filtered") for library in FILES]
CASES += [(library, "viewed") for library in (*libraries.SEEKABLE, "grain")]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    pytest.importorskip("torchdata.stateful_dataloader")
    library_ranks = pytest.importorskip("library_ranks")
    data = {}
    for library in set(FILES) & set(libraries.INSTALLED):
        data[library] = tmp_path_factory.mktemp(library)
        libraries.write(library, data[library])
    folder = tmp_path_factory.mktemp("world")
    return ranks.run_world(2, folder, library_ranks.work, data)


@pytest.mark.parametrize(("library", "way"), CASES)
def test_processes_share_an_epoch(library, way, world):
    libraries.needs(library)
    for epochs in zip(*(result[library, way][0] for result in world), strict=True):
        (chosen, steps, _), (other, other_steps, _) = epochs
        batches = [of_rank for *_, of_rank in epochs]
        assert chosen == other and steps == other_steps
        assert [len(of_rank) for of_rank in batches] == [steps, steps]
        ids = [list(itertools.chain(*of_rank)) for of_rank in batches]
        assert len(ids[0]) == len(ids[1])
        if way == "viewed":
            assert ids == [chosen[rank::2] for rank in range(2)]
        else:
            samples = [i for i in itertools.chain(*ids) if i >= 0]
            assert sorted(samples) == chosen and len(ids[0]) == 14  # of 26, in four workers


@pytest.mark.parametrize(("library", "way"), CASES)
def test_an_epoch_resumes_on_all_processes(library, way, world):
    libraries.needs(library)
    for result in world:
        epochs, before, rest, resumed = result[library, way]
        assert before + rest == epochs[-1][2] and resumed == rest and before and rest
