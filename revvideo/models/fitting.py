"""Fits the tensors of a file to those of a model, as far as the permissions allow. Nothing is loaded here."""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from revvideo.models.fixed_positions import fixed_grid, is_same_table
from revvideo.models.qkv_layout import fuse_qkv, fused_name, part_names, separate_qkv
from revvideo.models.resize_positions import (
    Grid,
    grid_text,
    joint_grid,
    resize_joint,
    resize_relative,
    resize_spatial,
    resize_temporal,
    square_side,
)

PERMISSIONS = ("head", "interpolate", "inflate")
INFLATIONS = ("mean", "repeat")

_PRETRAINING = re.compile(r"decoder_|decoder\.|pred_head|mask_token|dec_pos_embed")
_RELATIVE = re.compile(r"(.*\.)?rel_pos_[thw]")


class Fitting:
    """The result of fitting ``tensors`` to ``target``.

    Attributes:
        fitted: name of the model -> tensor of the model's shape.
        changes: name -> (``"converted"``, ``"interpolated"`` or ``"inflated"``, what was done), for tensors that are
            not the file's own.
        unused: tensors of the file and of the model that the permission ``"head"`` leaves out.
        problems: sentences on what could not be done.
        pretraining: tensors of the file that belong to a pre-training network.

    Args:
        tensors: of the file, under the names of the model's family.
        target: state dict of the model.
        grid: (T, H, W) of the model's tokens; None where it has none.
        head: names of the classifier's tensors.
        allow: some of `PERMISSIONS`.
        inflation: one of `INFLATIONS`.
        source_grid: (T, H, W) of the file's tokens, where it is known.
        fixed: the table ``pos_embed`` of a model with fixed positions; None for any other model.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        target: Mapping[str, Tensor],
        *,
        grid: Grid | None,
        head: set[str],
        allow: frozenset[str],
        inflation: str,
        source_grid: Grid | None = None,
        fixed: Tensor | None = None,
    ):
        self.file, self.target, self.grid, self.head, self.allow = dict(tensors), target, grid, head, allow
        self.source_grid, self.fixed = source_grid, fixed
        self.changes: dict[str, tuple[str, str]] = {}
        self.problems: list[str] = []
        self.unused: list[str] = []
        self.pretraining = [name for name in tensors if _PRETRAINING.match(name) and name not in target]
        self.class_rows = int("cls_token" in tensors)
        self.image = self._patch_axes(self.file) == 4
        self._match_qkv()
        self._match_fixed_positions()
        if "inflate" in allow and self._is_inflation():
            self._inflate(inflation)
        self._join_tables()
        if "interpolate" in allow:
            self._interpolate()
        if "head" in allow:
            self._leave_out_heads()
        self.fitted = {
            name: self.file[name]
            for name, want in target.items()
            if name in self.file and self.file[name].shape == want.shape
        }

    @property
    def fits(self) -> bool:
        return not self.problems and not any(self.differences().values())

    def differences(self) -> dict[str, list[str]]:
        """Names and shapes that are missing in the file, unexpected in it, and of another shape."""
        optional = self.head if "head" in self.allow else set()
        want = {name: tuple(tensor.shape) for name, tensor in self.target.items()}
        have = {name: tuple(tensor.shape) for name, tensor in self.file.items()}
        return {
            "missing": [f"{name} {want[name]}" for name in want if name not in have and name not in optional],
            "unexpected": [f"{name} {have[name]}" for name in have if name not in want],
            "of another grid": [
                f"{name} {grid_text(self.source_grid)} instead of {grid_text(self.grid)}"
                for name in want
                if have.get(name) == want[name] and self._has_other_grid(name)
            ],
            "of another shape": [
                f"{name} {have[name]} instead of {want[name]}"
                for name in want
                if name in have and have[name] != want[name]
            ],
        }

    def _put(self, name: str, tensor: Tensor, kind: str, how: str) -> None:
        """Replace a tensor. One that was changed twice is listed with both changes; inflated counts before all."""
        if name in self.changes:
            before, first = self.changes[name]
            kind, how = "inflated" if before == "inflated" else kind, f"{first}, {kind} {how}"
        self.file[name], self.changes[name] = tensor, (kind, how)

    def _match_qkv(self) -> None:
        """Bring ``qkv`` to the layout of the model, attention by attention."""
        for layout, how in ((separate_qkv, "a part of qkv"), (fuse_qkv, "q, k and v joined")):
            for name, tensor in layout(self.file).items():
                if name in self.target and name not in self.file:
                    self._put(name, tensor, "converted", how)
        for name in list(self.file):
            if name not in self.target and self._is_in_other_layout(name):
                del self.file[name]

    def _is_in_other_layout(self, name: str) -> bool:
        """Whether all that a tensor holds is in the model's layout now."""
        others = part_names(name) or [fused_name(name)]
        return all(self.changes.get(other, ("",))[0] == "converted" for other in others)

    def _match_fixed_positions(self) -> None:
        """Fixed positions are no weights: a model that has them keeps its own, and takes none that were learned."""
        table = self.file.get("pos_embed")
        if table is None or "pos_embed" not in self.target:
            return
        grid = fixed_grid(table, self.class_rows)
        self.source_grid = grid or self.source_grid
        if self.fixed is None:
            if grid is not None:
                self._put("pos_embed", table, "converted", "fixed positions become learned ones")
            return
        if grid is None and not (table.is_meta or is_same_table(table, self.fixed)):
            self.problems.append(
                "pos_embed is a learned table, but the model has fixed positions (MVIT.USE_FIXED_SINCOS_POS)"
            )
        elif grid not in (None, self.grid) and self.allow & {"interpolate", "inflate"}:
            self._put("pos_embed", self.fixed, "converted", "fixed positions, computed for the model's grid")
            self.source_grid = self.grid

    @staticmethod
    def _patch_axes(tensors: Mapping[str, Tensor]) -> int | None:
        patch = tensors.get("patch_embed.proj.weight")
        return None if patch is None else patch.ndim

    def _is_inflation(self) -> bool:
        """Whether the file is of an image network and the model of a video network."""
        return (self._patch_axes(self.file), self._patch_axes(self.target)) == (4, 5)

    def _inflate(self, inflation: str) -> None:
        for name, want in self.target.items():
            have = self.file.get(name)
            if have is None or want.ndim != 5 or have.ndim not in (4, 5):
                continue
            kernel = have.unsqueeze(2) if have.ndim == 4 else have  # (O, I, 1, H, W)
            repeats = want.shape[2]
            if kernel.shape[2] == 1 and have.shape != want.shape:
                inflated = kernel.repeat(1, 1, repeats, 1, 1) / (repeats if inflation == "mean" else 1)
                self._put(name, inflated, "inflated", f"{tuple(have.shape)} -> {tuple(inflated.shape)}")
        self._inflate_tables()

    def _inflate_tables(self) -> None:
        """A joint table of an image becomes the spatial table, or is repeated over time; tables of time are zero."""
        table = self.file.get("pos_embed")
        if table is not None and "pos_embed_spatial" in self.target:
            del self.file["pos_embed"]
            rest = table[:, self.class_rows :]
            self._put("pos_embed_spatial", rest, "inflated", "from pos_embed")
            if self.class_rows:
                self._put("pos_embed_class", table[:, :1], "inflated", "row 0 of pos_embed")
        elif table is not None and "pos_embed" in self.target and self.grid is not None and self.fixed is None:
            first, rest = table[:, : self.class_rows], table[:, self.class_rows :]
            repeated = torch.cat([first, rest.repeat(1, self.grid[0], 1)], dim=1)
            self._put("pos_embed", repeated, "inflated", f"repeated over {self.grid[0]} steps of time")
            space = self.source_grid[1:] if self.source_grid else self._square(rest)
            self.source_grid = (self.grid[0], *space) if space else None
        for name, want in self.target.items():
            if name not in self.file and (name == "pos_embed_temporal" or name.endswith(".rel_pos_t")):
                self._put(name, torch.zeros(want.shape), "inflated", "zeros: the image has no time")

    def _join_tables(self) -> None:
        """Separate tables of space and time into a joint one: the sum that the model would compute."""
        parts = ("pos_embed_spatial", "pos_embed_temporal")
        if "pos_embed" not in self.target or "pos_embed" in self.file or not all(part in self.file for part in parts):
            return
        if any(part in self.target for part in parts):
            return
        space, time = (self.file.pop(part) for part in parts)
        sides = self._square(space)
        if sides and self.source_grid is None:
            self.source_grid = (time.shape[1], *sides)
        table = space.repeat(1, time.shape[1], 1) + time.repeat_interleave(space.shape[1], dim=1)
        first = self.file.pop("pos_embed_class", space[:, :0])
        how = "the sum of pos_embed_spatial and pos_embed_temporal"
        self._put("pos_embed", torch.cat([first, table], dim=1), "converted", how)

    @staticmethod
    def _square(table: Tensor) -> tuple[int, int] | None:
        """Height and width of a spatial table ``(1, N, D)``; None if it is no square."""
        try:
            return (square_side(table.shape[1]),) * 2
        except ValueError:
            return None

    def _has_other_grid(self, name: str) -> bool:
        """Whether a table of the model's length is known to be for another grid, such as 8 x 32 instead of 16 x 16."""
        if self.source_grid is None or self.grid is None:
            return False
        if name == "pos_embed":
            return self.source_grid != self.grid
        return name == "pos_embed_spatial" and self.source_grid[1:] != self.grid[1:]

    def _interpolate(self) -> None:
        for name, want in self.target.items():
            have = self.file.get(name)
            if have is None or (have.shape == want.shape and not self._has_other_grid(name)):
                continue
            if have.ndim != want.ndim or have.shape[-1] != want.shape[-1]:
                continue
            try:
                resized = self._resize(name, have, want)
            except ValueError as error:
                self.problems.append(f"{name} cannot be interpolated: {error}")
                continue
            if resized is not None and resized[0].shape == want.shape:
                self._put(name, resized[0], "interpolated", resized[1])
        if not self.problems:
            self.source_grid = None  # every table is for the model's grid now

    def _resize(self, name: str, have: Tensor, want: Tensor) -> tuple[Tensor, str] | None:
        """A table of this name at the length of ``want``, and what was done; None if it is no position table."""
        how = f"{tuple(have.shape)} -> {tuple(want.shape)}"
        if _RELATIVE.fullmatch(name):
            return resize_relative(have, want.shape[0]), how
        if name == "pos_embed_temporal":
            return resize_temporal(have, want.shape[1]), how
        if self.grid is None or name not in ("pos_embed", "pos_embed_spatial"):
            return None
        if name == "pos_embed_spatial":
            source = self.source_grid[1:] if self.source_grid else (square_side(have.shape[1]),) * 2
            self._check_rows(have.shape[1], source)
            return resize_spatial(have, source, self.grid[1:]), how
        rows = have.shape[1] - self.class_rows
        grid = self.source_grid or joint_grid(rows, self.grid, image=self.image)
        self._check_rows(rows, grid)
        resized = resize_joint(have, grid, self.grid, class_token=bool(self.class_rows))
        return resized, f"{grid_text(grid)} -> {grid_text(self.grid)}"

    @staticmethod
    def _check_rows(rows: int, grid: tuple[int, ...]) -> None:
        if math.prod(grid) != rows:
            raise ValueError(
                f"a grid of {grid_text(grid)} tokens (source_grid) needs {math.prod(grid)} rows, not {rows}"
            )

    def _leave_out_heads(self) -> None:
        for name in self.pretraining:
            del self.file[name]
            self.unused.append(f"{name} (of pre-training)")
        for name in self.head & self.file.keys():
            shape = tuple(self.file[name].shape)
            if name not in self.target or shape != self.target[name].shape:
                del self.file[name]
                self.unused.append(f"{name} {shape}")
        for name in self.head & self.target.keys() - self.file.keys():
            self.unused.append(f"{name} {tuple(self.target[name].shape)} of the model (keeps its initial values)")
        self.unused.sort()
