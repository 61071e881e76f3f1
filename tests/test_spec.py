from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from esr_eval.spec import (
    AddVector,
    Boost,
    Clamp,
    Readout,
    Runtime,
    SAERef,
    Span,
    Steering,
    fingerprint,
)
from esr_eval.steering.requests import Row, due_positions
from esr_eval.steering.sampling import Sampling

RUNTIME = Runtime(subject="s", model="m", sae=SAERef(release="r", sae_id="i"), steering_layer=2)

finite = st.floats(-1e6, 1e6, allow_nan=False)
latent = st.integers(0, 70_000)
edit = st.one_of(
    st.builds(Boost, latent=latent, strength=finite, layer=st.integers(0, 90)),
    st.builds(
        Boost,
        latent=latent,
        strength=finite,
        layer=st.integers(0, 90),
        from_token=st.integers(0, 50),
        until_token=st.integers(51, 99),
    ),
    st.builds(
        AddVector,
        vector=st.tuples(finite, finite, finite),
        strength=finite,
        layer=st.integers(0, 90),
    ),
)


@given(st.lists(edit, max_size=5))
def test_json_both_ways_keeps_everything(edits):
    spec = Steering(
        runtime=RUNTIME, edits=tuple(edits), readouts=(Readout(latents=(1, 2), layer=2),)
    )
    again = Steering.from_extra_body(spec.to_extra_body())
    assert again == spec
    assert fingerprint(again) == fingerprint(spec)


def test_fingerprint_sees_every_difference():
    base = Steering(runtime=RUNTIME, edits=(Boost(latent=1, strength=2.0, layer=2),))
    variants = [
        base,
        Steering(runtime=RUNTIME, edits=(Boost(latent=1, strength=2.5, layer=2),)),
        Steering(runtime=RUNTIME, edits=(Boost(latent=1, strength=2.0, layer=2, until_token=9),)),
        Steering(runtime=RUNTIME.model_copy(update={"dtype": "bfloat16"}), edits=base.edits),
        Steering(runtime=RUNTIME.model_copy(update={"steering_layer": 3}), edits=base.edits),
    ]
    assert len({fingerprint(spec) for spec in variants}) == len(variants)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Boost(latent=-1, strength=1, layer=0),
        lambda: Boost(latent=1, strength=float("nan"), layer=0),
        lambda: Boost(latent=1, strength=1, layer=0, unknown=1),
        lambda: Span(positions="prompt", from_token=3),
        lambda: Span(from_token=5, until_token=5),
        lambda: AddVector(strength=1, layer=0),
        lambda: AddVector(path="v.safetensors", strength=1, layer=0),
        lambda: Steering(
            runtime=RUNTIME,
            edits=(Clamp(latent=1, layer=2), Clamp(latent=1, value=3.0, layer=2)),
        ),
        lambda: Steering(
            runtime=RUNTIME.model_copy(update={"sae": None}),
            edits=(Boost(latent=1, strength=1, layer=2),),
        ),
        lambda: Steering(
            runtime=RUNTIME.model_copy(update={"sae": None}),
            readouts=(Readout(latents=(1,), layer=2),),
        ),
        lambda: Readout(latents="norm", layer=2, reduce="rate"),
        lambda: Readout(latents="norms", layer=2),
    ],
)
def test_impossible_specs_are_refused(bad):
    with pytest.raises(ValidationError):
        bad()


def test_vectors_and_norms_need_no_sae():
    spec = Steering(
        runtime=RUNTIME.model_copy(update={"sae": None}),
        edits=(AddVector(vector=(1.0, 2.0), strength=1, layer=2),),
        readouts=(Readout(latents="norm", layer=2, reduce="tokens"),),
    )
    assert Steering.from_extra_body(spec.to_extra_body()) == spec


@pytest.mark.parametrize(
    ("span", "bounds"),
    [
        (Span(), (1, None)),
        (Span(positions="prompt"), (1, 10)),
        (Span(positions="generated"), (10, None)),
        (Span(from_token=4), (14, None)),
        (Span(until_token=4), (1, 14)),
        (Span(positions="generated", from_token=2, until_token=4), (12, 14)),
    ],
)
def test_bounds(span, bounds):
    assert span.bounds(prompt_tokens=10, skip_first=1) == bounds


def test_due_positions_count_each_touched_position_once_per_layer():
    spec = Steering(
        runtime=RUNTIME,
        edits=(
            Boost(latent=1, strength=1, layer=2),
            Boost(latent=2, strength=1, layer=2, positions="prompt"),
            Boost(latent=3, strength=1, layer=4, positions="generated", until_token=2),
            Boost(latent=3, strength=0, layer=5),
        ),
    )
    row = Row(tuple(range(10)), Sampling(0, 0, None, None, 1.0, 5), spec)
    assert due_positions(row, fed=14) == {2: 14, 4: 2}
    assert due_positions(row, fed=11) == {2: 11, 4: 1}
    assert due_positions(Row(row.prompt, row.sampling), fed=11) == {}


def test_a_spec_of_before_equals_todays_and_has_the_digest_it_had():
    """The digests were computed before a template's variables and its day were in the spec."""
    runtime = Runtime(subject="s", model="m", sae=SAERef(release="r"))
    before = runtime.model_dump(mode="json", exclude={"template_args", "date", "sampler"})
    assert Runtime.model_validate(before) == runtime
    assert fingerprint(runtime) == "23d81a82227f314b"
    assert fingerprint(Steering(runtime=runtime)) == "771ebfb977258714"


@pytest.mark.parametrize(
    "change",
    [
        {"date": date(2026, 11, 24)},
        {"template_args": {"enable_thinking": True}},
        {"sampler": "vllm"},
    ],
)
def test_a_templates_day_and_variables_are_in_the_spec_and_in_its_digest(change):
    spec = Steering(runtime=RUNTIME.model_copy(update=change))
    assert Steering.from_extra_body(spec.to_extra_body()) == spec
    assert fingerprint(spec) != fingerprint(Steering(runtime=RUNTIME))
    assert fingerprint(spec.runtime) != fingerprint(RUNTIME)


def test_the_spec_names_the_day_even_where_nobody_set_it():
    written = Steering(runtime=RUNTIME).to_extra_body()["esr"]["runtime"]
    assert written["date"] == "2024-07-26"
