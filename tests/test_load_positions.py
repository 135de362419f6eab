"""Position tables while loading: interpolated with permission, from grids that are known, and fixed ones never."""

import pytest
import torch
from loading import FINE_TUNING, as_weights, changed, refusal, snapshot
from tiny_models import tiny_mvit

from revvideo import create_model
from revvideo.models.checkpoint_formats import infer_overrides, load_weights, read_architecture
from revvideo.models.input_spec import InputSpec
from revvideo.models.pooling_attention import AttentionOptions
from revvideo.models.resize_positions import (
    joint_grid,
    resize_joint,
    resize_relative,
    resize_spatial,
    resize_temporal,
    square_side,
)

# Interpolation


def test_tables_of_another_size_are_interpolated_with_permission():
    source = changed(tiny_mvit)
    larger = {"input_spec": InputSpec(frames=12, size=(48, 48))}
    message = refusal(tiny_mvit(**larger), source.state_dict())
    assert 'allow={"interpolate"} loads it' in message
    model = tiny_mvit(**larger)
    report = load_weights(model, source.state_dict(), allow={"interpolate"})
    assert report.interpolated == [
        "pos_embed_spatial ((1, 64, 8) -> (1, 144, 8))",
        "pos_embed_temporal ((1, 4, 8) -> (1, 6, 8))",
    ]
    expected = resize_spatial(source.pos_embed_spatial, (8, 8), (12, 12))
    assert torch.equal(model.pos_embed_spatial, expected)
    assert torch.equal(model.pos_embed_class, source.pos_embed_class)
    assert model(torch.randn(1, 3, 12, 48, 48)).isfinite().all()


def test_relative_positions_and_joint_tables_are_interpolated():
    options = {"attention": AttentionOptions(relative_space=True, relative_time=True), "positions": "joint"}
    larger = InputSpec(frames=8, size=(48, 48))
    source, model = changed(tiny_mvit, **options), tiny_mvit(**options, input_spec=larger)
    report = load_weights(model, source.state_dict(), allow={"interpolate"})
    assert len(report.interpolated) == 1 + 6 * 2
    expected = resize_joint(source.pos_embed, (4, 8, 8), (4, 12, 12), class_token=True)
    assert torch.equal(model.pos_embed, expected)
    assert torch.equal(model.pos_embed[:, 0], source.pos_embed[:, 0])


def test_a_table_of_no_square_is_not_interpolated():
    state = snapshot(tiny_mvit())
    state["pos_embed_spatial"] = torch.ones(1, 60, 8)
    message = refusal(tiny_mvit(), state, allow={"interpolate"})
    assert "pos_embed_spatial cannot be interpolated: a table of 60 rows is for no square grid" in message


def test_resizing_keeps_constants_and_the_same_size():
    table = torch.randn(1, 24, 3)
    same = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(resize_spatial(table, (4, 6), (4, 6)), table, **same)
    torch.testing.assert_close(resize_temporal(table, 24), table, **same)
    torch.testing.assert_close(resize_relative(table[0], 24), table[0], **same)
    torch.testing.assert_close(resize_joint(table, (2, 3, 4), (2, 3, 4), class_token=False), table, **same)
    ones = torch.ones(1, 24, 3)
    assert resize_spatial(ones, (4, 6), (5, 9)).shape == (1, 45, 3)
    torch.testing.assert_close(resize_spatial(ones, (4, 6), (5, 9)), torch.ones(1, 45, 3))
    ramp = resize_temporal(torch.tensor([0.0, 1.0]).view(1, 2, 1), 4)
    torch.testing.assert_close(ramp[0, :, 0], torch.tensor([0, 0.25, 0.75, 1]))
    assert resize_relative(torch.ones(15, 3), 27).shape == (27, 3)
    assert resize_joint(torch.ones(1, 25, 3), (2, 3, 4), (4, 6, 8), class_token=True).shape == (1, 193, 3)


def test_the_grid_of_a_table():
    assert square_side(49) == 7
    assert joint_grid(4 * 49, (4, 12, 12)) == (4, 7, 7)
    assert joint_grid(14 * 14, (1, 7, 7), image=True) == (1, 14, 14)
    assert joint_grid(8 * 6, (4, 2, 3)) == (8, 2, 3)
    with pytest.raises(ValueError, match="neither 4 square frames nor frames of 14 x 14"):
        joint_grid(97, (4, 14, 14))
    with pytest.raises(ValueError, match="may be for 2 x 28 x 28 or 8 x 14 x 14 tokens, so its grid is unknown"):
        joint_grid(8 * 14 * 14, (2, 14, 14))
    with pytest.raises(ValueError, match="0 rows"):
        square_side(0)


def test_a_joint_table_of_several_readings_needs_its_grid():
    sizes = [InputSpec(frames=frames, size=(32, 32)) for frames in (8, 2)]  # 4 x 8 x 8 tokens, 1 x 8 x 8
    source, model = (tiny_mvit(positions="joint", input_spec=size) for size in sizes)
    state = changed(lambda: source).state_dict()
    message = refusal(model, state, allow={"interpolate"})
    for part in ("1 x 16 x 16 or 4 x 8 x 8", "grid is unknown", "load_weights(..., source_grid=(T', H', W'))"):
        assert part in message
    assert "input size of the file is unknown" in message
    assert "input_size=(frames, height, width)" in message
    assert "another architecture" not in message
    report = load_weights(model, state, allow={"interpolate"}, source_grid=(4, 8, 8))
    assert report.interpolated == ["pos_embed (4 x 8 x 8 -> 1 x 8 x 8)"]
    assert torch.equal(model.pos_embed, resize_joint(state["pos_embed"], (4, 8, 8), (1, 8, 8), class_token=True))
    assert "needs 150 rows, not 256" in refusal(model, state, allow={"interpolate"}, source_grid=(6, 5, 5))
    with pytest.raises(ValueError, match=r"source_grid is \(8, 8\); expected three numbers"):
        load_weights(model, state, source_grid=(8, 8))


def test_a_table_of_the_same_length_is_resized_where_its_grid_is_told():
    source, model = changed(tiny_mvit), tiny_mvit()
    assert load_weights(model, source.state_dict()).exact
    message = refusal(model, source.state_dict(), source_grid=(4, 4, 16))
    assert "1 of another grid: pos_embed_spatial 4 x 4 x 16 instead of 4 x 8 x 8" in message
    assert 'allow={"interpolate"} loads it' in message
    report = load_weights(model, source.state_dict(), source_grid=(4, 4, 16), allow={"interpolate"})
    assert report.interpolated == ["pos_embed_spatial ((1, 64, 8) -> (1, 64, 8))"]
    assert torch.equal(model.pos_embed_spatial, resize_spatial(source.pos_embed_spatial, (4, 16), (8, 8)))


# Fixed positions

WIDE = {"embed_dim": 16, "depth": 6, "input_size": (8, 32, 32), "num_classes": 5}


def test_fixed_positions_are_recognised_by_their_numbers(caplog):
    fixed = create_model("mvit_b_16x4", **WIDE | {"positions": "sincos", "input_size": (12, 32, 48)})
    architecture = read_architecture(fixed.state_dict())
    assert (architecture.positions, architecture.grid) == ("sincos", (6, 8, 12))
    overrides = infer_overrides(as_weights(fixed.state_dict()), "mvit_b_16x4")
    assert (overrides["positions"], overrides["input_size"]) == ("sincos_twice", (12, 32, 48))
    assert 'positions="sincos" for once' in caplog.text
    learned = create_model("mvit_b_16x4", **WIDE | {"positions": "joint"})
    assert read_architecture(learned.state_dict()).positions == "joint"


def test_learned_and_fixed_positions_do_not_mix_unnoticed():
    fixed, twice, learned = (
        create_model("mvit_b_16x4", **WIDE, positions=positions) for positions in ("sincos", "sincos_twice", "joint")
    )
    assert load_weights(twice, fixed.state_dict()).exact
    message = refusal(fixed, learned.state_dict(), allow=FINE_TUNING)
    assert "pos_embed is a learned table, but the model has fixed positions (MVIT.USE_FIXED_SINCOS_POS)" in message
    report = load_weights(learned, fixed.state_dict())
    assert report.converted == ["pos_embed (fixed positions become learned ones)"]
    assert load_weights(fixed, learned.state_dict()).exact  # the same numbers


def test_fixed_positions_are_computed_and_not_interpolated():
    sizes = [WIDE | {"input_size": size} for size in ((8, 32, 32), (8, 48, 48))]
    source, model = (create_model("mvit_b_16x4", **size, positions="sincos") for size in sizes)
    own = model.pos_embed.clone()
    assert 'allow={"interpolate"} loads it' in refusal(model, source.state_dict())
    report = load_weights(model, source.state_dict(), allow={"interpolate"})
    assert torch.equal(model.pos_embed, own)
    assert report.converted == ["pos_embed (fixed positions, computed for the model's grid)"]
    assert not report.interpolated


def test_fixed_positions_of_an_image_network_become_those_of_the_clip():
    image = create_model("mvit_b", **WIDE | {"input_size": (1, 32, 32)}, positions="sincos")
    model = create_model("mvit_b_16x4", **WIDE, positions="sincos")
    own = model.pos_embed.clone()
    report = load_weights(model, image.state_dict(), allow={"inflate"})
    assert torch.equal(model.pos_embed, own)
    assert report.converted == ["pos_embed (fixed positions, computed for the model's grid)"]
    torch.testing.assert_close(model.patch_embed.proj.weight.sum(2), image.patch_embed.proj.weight)


def test_the_joint_table_of_an_image_has_one_reading():
    source, model = (create_model("mvit_b", **WIDE | {"input_size": (1, n, n)}) for n in (64, 32))
    report = load_weights(model, source.state_dict(), allow={"interpolate"})
    assert report.interpolated == ["pos_embed (1 x 16 x 16 -> 1 x 8 x 8)"]
