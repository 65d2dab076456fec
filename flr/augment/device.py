"""The batch engine: every stage acts on a whole batch, where the model runs; on a CPU, on one face after another."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import cv2
import numpy as np
import torch
from torch import Tensor

from flr.augment.affine import STRETCH, Affine, Moves
from flr.augment.draws import uniform
from flr.augment.transfer import to_device
from flr.errors import UserError
from flr.landmarks.geometry import warp_batch

NOISE_BANK = 1 << 20
STEPS = 16  # resolutions between the crop's own and the coarsest
FAINT = 0.15  # standard deviation in pixels of a blur that moves no level by 1e-9
OCCLUDER = 8  # columns of draws that an occluder takes
TEXTURE = STRETCH + 2  # the first of four more of each occluder
TEXTURES, SIDE = 32, 256  # the bank of textures, and the pixels after which they repeat
MOTTLED = 0.3  # the largest standard deviation of an occluder's texture, shares of the pixel range


@dataclass(frozen=True, kw_only=True)
class Augment(Affine):
    """How far training faces may be augmented. Every draw is a function of (seed, epoch, face index).

    The stages follow one another as from a scene to a file: light and colour, occluders, blur, resolution, exposure,
    noise, erasing.

    Attributes:
        rotation, scale, shift, mirror: see `Affine`.
        gamma: pixels to the power of up to 1 + gamma or as little as its inverse, log-uniform.
        saturation: factors 1 +- saturation on the colours' distance from grey; nothing to a grey crop.
        hue: shares of a full turn either way, of the colours about grey; nothing to a grey crop.
        occluders: the largest number of ellipses that hide parts of the image.
        occluder_size: the largest axis of an occluder, shares of the crop's side.
        occluder_texture: probability that an occluder has a texture; the others have one colour.
        blur: the largest standard deviation of a Gaussian blur, crop pixels.
        downscale: the crop is shrunk by up to this factor and blown up again, log-uniform; 1 for never.
        brightness: factors 1 +- brightness on the pixels.
        contrast: factors 1 +- contrast about the image's mean.
        noise: the largest standard deviation of Gaussian noise, shares of the pixel range.
        erasing: probability that a rectangle is painted over (Zhong et al. 2020, arXiv:1708.04896).
        erasing_area: the largest share of the crop that the rectangle covers.
    """

    gamma: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    occluders: int = 0
    occluder_size: float = 0.4
    occluder_texture: float = 0.0
    blur: float = 0.0
    downscale: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    noise: float = 0.0
    erasing: float = 0.0
    erasing_area: float = 0.15

    RANGE: ClassVar[dict[str, tuple[float, float]]] = Affine.RANGE | {
        "gamma": (0, 3), "saturation": (0, 1), "hue": (0, 0.5), "occluders": (0, 8), "occluder_size": (0.05, 1),
        "occluder_texture": (0, 1),
        "blur": (0, 32), "downscale": (1, 16), "brightness": (0, np.inf), "contrast": (0, np.inf), "noise": (0, np.inf),
        "erasing": (0, 1), "erasing_area": (0, 1),
    }  # fmt: skip

    def check(self, size: int, channels: int) -> None:
        """Refuse noise for crops that are larger than its bank."""
        if self.noise and channels * size**2 > NOISE_BANK:
            raise UserError(
                f"augment.noise serves crops of up to {NOISE_BANK} values, these have {channels * size**2}; set it to 0"
            )

    def draw(self, seed: int, epoch: int, face: np.ndarray) -> "Draws":
        """The draws of faces (B,) int in an epoch."""
        # A stage keeps its columns for ever, so that an old recipe draws what it drew; a new stage takes new ones.
        u = uniform(seed, epoch, face, 19 + OCCLUDER * self.occluders)
        texture = uniform(seed, epoch, face, 4 * self.occluders, TEXTURE).reshape(len(u), self.occluders, 4)
        texture[..., 0] *= texture[..., 1] < self.occluder_texture
        sign = 2 * u - 1
        return Draws(
            **vars(super().draw(seed, epoch, face)),
            brightness=1 + self.brightness * sign[:, 5],
            contrast=1 + self.contrast * sign[:, 6],
            noise=self.noise * u[:, 7],
            noise_at=(u[:, 8] * NOISE_BANK).astype(np.int64),
            blur=self.blur * u[:, 9],
            erase=u[:, 10] < self.erasing,
            erase_area=self.erasing_area * (0.1 + 0.9 * u[:, 11]),
            erase_at=u[:, 12:14],
            gamma=(1 + self.gamma) ** sign[:, 14],
            saturation=1 + self.saturation * sign[:, 15],
            hue=2 * np.pi * self.hue * sign[:, 16],
            resolution=(u[:, 17] * STEPS).astype(np.int64),
            occluders=(u[:, 18] * (self.occluders + 1)).astype(np.int64),
            occluder=u[:, 19:].reshape(len(u), self.occluders, OCCLUDER),
            texture=texture,
        )

    def hidden(self, points: Tensor, draws: "Draws", size: int) -> Tensor:  # type: ignore[override]  # its own draws
        """Return (B, K) bool whether an occluder or the erased rectangle covers points (B, K, 2), crop pixels."""
        low, high, conics = to_device(points.device, *draws.erased(size), draws.conics(self.occluder_size))
        covered = ((points >= low[:, None]) & (points < high[:, None])).all(-1)
        x, y = ((points + 0.5) / size).unbind(-1)
        for n in range(self.occluders):
            left, top, xx, xy, yy, absent = conics[:, n, :, None]
            across, down = x - left, y - top
            covered = covered | (xx * across**2 + xy * across * down + yy * down**2 + absent < 1)
        return covered

    def pixels(  # type: ignore[override]  # its own draws
        self, images: Tensor, draws: "Draws", size: int, levels: tuple[float, float] = (0.0, 1.0)
    ) -> Tensor:
        maps = draws.from_store(size, (images.shape[-1] - size) // 2)
        if images.device.type == "cpu" and images.dtype == torch.uint8:
            return self._one_by_one(images.permute(0, 2, 3, 1).numpy(), maps, draws, size, *levels)
        warped = warp_batch(images, to_device(images.device, maps)[0], size)
        return self._photometry(warped.div_(255), draws).mul_(levels[1] - levels[0]).add_(levels[0])

    def _one_by_one(
        self, images: np.ndarray, maps: np.ndarray, draws: "Draws", size: int, black: float, white: float
    ) -> Tensor:
        """Do on a CPU what `pixels` does with `_photometry`, face by face with OpenCV.

        A face that stays in the cache through all stages costs a quarter. Two threads that share the faces are slower,
        since Python's lock changes hands at every kernel.

        Args:
            images: (B, S, S, C) uint8, store pixels.
            maps: (B, 2, 3) from them to the augmented crops'.
            draws: Of these faces.
            size: Side of the crop.
            black: What black becomes.
            white: What white becomes.
        """
        channels = images.shape[3]
        out = np.empty((len(images), size, size, channels)[: 3 + (channels > 1)], np.float32)
        levels = np.arange(256, dtype=np.float32) / 255
        recolours, mix = channels == 3 and bool(self.saturation or self.hue), draws.colours()
        occlude = self._occluders(draws, size, channels)
        sides, bank = _coarser(size, self.downscale), noise_bank(torch.device("cpu")).numpy()
        factor, span = draws.brightness * draws.contrast, white - black
        erased_from, erased_to = draws.erased(size)
        for i in range(len(images)):
            x = cv2.warpAffine(
                images[i], maps[i], (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
            x = cv2.LUT(x, levels ** np.float32(draws.gamma[i]) if self.gamma else levels)
            if recolours:
                x = np.clip(cv2.transform(x, mix[i]), 0, 1)
            occlude(x, i)
            if draws.blur[i] > FAINT:
                reach = 2 * int(np.ceil(2.5 * draws.blur[i])) + 1
                x = cv2.GaussianBlur(x, (reach, reach), draws.blur[i], borderType=cv2.BORDER_REPLICATE)
            if self.downscale > 1:
                few = sides[draws.resolution[i]]
                x = cv2.resize(cv2.resize(x, (few, few), interpolation=cv2.INTER_AREA), (size, size))
            # Brightness, contrast, noise and the range from black to white in one pass.
            shift = (draws.brightness[i] - factor[i]) * sum(cv2.mean(x)) / channels
            noise = bank[draws.noise_at[i] :][: x.size].reshape(x.shape) if self.noise else x
            cv2.addWeighted(x, factor[i] * span, noise, draws.noise[i] * span, shift * span + black, dst=out[i])
            (left, top), (right, bottom) = erased_from[i], erased_to[i]
            out[i, top:bottom, left:right] = black + span / 2
            np.clip(out[i], min(black, white), max(black, white), out=out[i])
        return torch.from_numpy(out).reshape(len(images), size, size, channels).permute(0, 3, 1, 2)

    def _occluders(self, draws: "Draws", size: int, channels: int) -> Callable[[np.ndarray, int], None]:
        """Return what paints the occluders of face i over its image (size, size) or (size, size, 3), shares of white."""
        down, across, colour = draws.ellipses(self.occluder_size, size)
        deviation, texture, rows, columns = draws.windows(size)
        textures = texture_bank(torch.device("cpu")).numpy() if deviation.any() else np.empty(0)

        def paint(image: np.ndarray, i: int) -> None:
            for n in range(draws.occluders[i]):
                hidden = down[n, i] @ across[n, i] < 1
                image[hidden] = colour[n, i, :channels]
                if deviation[n, i]:
                    window = textures[texture[n, i]][rows[n, i][:, None], columns[n, i]]
                    pattern = window[hidden] * deviation[n, i]
                    image[hidden] = np.clip(image[hidden] + (pattern if channels == 1 else pattern[:, None]), 0, 1)

        return paint

    def _photometry(self, images: Tensor, draws: "Draws") -> Tensor:
        size, device = images.shape[-1], images.device
        levels = np.stack([draws.gamma, draws.blur, draws.brightness, draws.brightness * draws.contrast, draws.noise])
        scales, mix, down, across, colour, low, high, resolution, noise_at, deviation, which, rows, columns = to_device(
            device, levels[..., None, None, None], draws.colours(), *draws.ellipses(self.occluder_size, size),
            *draws.erased(size), draws.resolution, draws.noise_at, *draws.windows(size),
        )  # fmt: skip
        gamma, blur, brightness, factor, noise = scales
        if self.gamma:
            images = images**gamma
        if images.shape[1] == 3 and (self.saturation or self.hue):
            images = torch.einsum("bij,bjhw->bihw", mix, images).clamp_(0, 1)
        for n in range(self.occluders):
            hidden = (down[n] @ across[n])[:, None] < 1
            plain = colour[n, :, : images.shape[1], None, None]
            if self.occluder_texture:
                field = texture_bank(device)[which[n, :, None, None], rows[n, ..., None], columns[n, :, None]]
                plain = (plain + (deviation[n, :, None, None] * field)[:, None]).clamp(0, 1)
            images = torch.where(hidden, plain, images)
        if self.blur:
            images = _blur(images, blur[:, 0, 0], self.blur)
        if self.downscale > 1:
            shrink = resampling(size, self.downscale, device)[resolution]
            images = shrink[:, None] @ images @ shrink[:, None].mT
        if self.brightness or self.contrast:
            mean = images.mean((1, 2, 3), keepdim=True)
            # brightness * ((x - mean) * contrast + mean), as one multiply-add
            images = images * factor + mean * (brightness - factor)
        if self.noise:
            images = images + noise * _noise(images, noise_at)
        if self.erasing:
            line = torch.arange(size, device=device)
            inside = (line >= low[..., None]) & (line < high[..., None])
            images = torch.where(inside[:, 1, None, :, None] & inside[:, 0, None, None, :], 0.5, images)
        return images.clamp_(0, 1)


@dataclass(frozen=True)
class Draws(Moves):
    """What was drawn for a batch of B faces; all arrays (B,) but `shift` and `erase_at` (B, 2), `occluder` and `texture`.

    Attributes:
        resolution: how many of `STEPS` the image is coarsened.
        occluders: how many of `occluder` are there.
        occluder: (B, N, OCCLUDER) in 0..1, see `ellipses`.
        texture: (B, N, 4) in 0..1, see `windows`.
    """

    brightness: np.ndarray
    contrast: np.ndarray
    noise: np.ndarray
    noise_at: np.ndarray
    blur: np.ndarray
    erase: np.ndarray
    erase_area: np.ndarray
    erase_at: np.ndarray
    gamma: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray
    resolution: np.ndarray
    occluders: np.ndarray
    occluder: np.ndarray
    texture: np.ndarray

    def colours(self) -> np.ndarray:
        """(B, 3, 3) on RGB: a turn about grey and a stretch away from it, which leave the luma as it is.

        The matrices of ``hue-rotate`` and ``saturate`` in https://www.w3.org/TR/filter-effects-1/, with the luma of
        BT.601 in place of its rounded BT.709.
        """
        to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
        cos, sin = self.saturation * np.cos(self.hue), self.saturation * np.sin(self.hue)
        turn = np.zeros((len(self.hue), 3, 3))
        turn[:, 0, 0] = 1
        turn[:, 1, 1], turn[:, 1, 2], turn[:, 2, 1], turn[:, 2, 2] = cos, -sin, sin, cos
        return np.linalg.inv(to_yiq) @ turn @ to_yiq

    def ellipses(self, largest: float, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The occluders, each up to `largest` crop sides long.

        Returns:
            Factors (N, B, size, 3) and (N, B, 3, size), whose product is below 1 in the pixels that an occluder hides;
            its colour (N, B, 3).
        """
        x, y, xx, xy, yy, absent = self.conics(largest)[..., None]
        line = (np.arange(size) + 0.5) / size
        across, down = line - x, line - y
        left = np.stack([np.ones_like(down), down, yy * down**2 + absent], -1)
        right = np.stack([xx * across**2, xy * across, np.ones_like(across)], -2)
        return left, right, self.occluder[..., 5:].transpose(1, 0, 2)

    def windows(self, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the windows of `texture_bank` that the occluders show.

        Returns:
            (N, B) float32 the standard deviation of the levels, 0 for an occluder of one colour; (N, B) the texture;
            (N, B, size) the rows and the columns of its window.
        """
        strength, which, top, left = self.texture.transpose(2, 1, 0)
        # Its probability and its texture come from one number; the textures of those that have one are equally frequent.
        which = (which * 1e6).astype(np.int64) % TEXTURES
        rows, columns = (((at * SIDE).astype(np.int64)[..., None] + np.arange(size)) % SIDE for at in (top, left))
        return (MOTTLED * strength).astype(np.float32), which, rows, columns

    def conics(self, largest: float) -> np.ndarray:
        """Return (6, N, B): x and y of each occluder's centre, shares of the crop's side, and its conic.

        The conic's xx, xy, yy and a constant, which is 0 for an occluder that is drawn, give a value below 1 inside.
        """
        x, y, length, width, angle = (self.occluder[..., i].T for i in range(5))
        cos, sin = np.cos(np.pi * angle), np.sin(np.pi * angle)
        a, b = ((largest / 2 * (1 + 7 * share) / 8) ** -2.0 for share in (length, width))  # from an eighth of it on
        absent = np.where(np.arange(len(x))[:, None] < self.occluders, 0.0, 2.0)
        return np.stack([x, y, a * cos**2 + b * sin**2, 2 * (a - b) * cos * sin, a * sin**2 + b * cos**2, absent])

    def erased(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(B, 2) int: the first x and y of the rectangle to erase, and the first past it; none where they are equal."""
        side = np.sqrt(self.erase_area)[:, None] * size
        low = self.erase_at * (size - side)
        return tuple(np.ceil(np.where(self.erase[:, None], end, 0)).astype(int) for end in (low, low + side))  # type: ignore[return-value]


@cache
def noise_bank(device: torch.device) -> Tensor:
    """Draw (2 * NOISE_BANK,) float32 standard normal numbers, the same on every device."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2 * NOISE_BANK, generator=generator).to(device)


@cache
def texture_bank(device: torch.device) -> Tensor:
    """Draw (TEXTURES, SIDE, SIDE) float32 of mean 0 and standard deviation 1: clouds, coarse to fine, and stripes."""
    random = np.random.default_rng(0)
    y, x = np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE), indexing="ij")
    fields = []
    for k in range(TEXTURES):
        turn, longer = random.uniform(0, np.pi), 1 + 15 * (k % 2) * random.uniform()
        along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        frequency = np.hypot(along * longer, across) + 1 / SIDE
        phases = np.fft.fft2(random.standard_normal((SIDE, SIDE)))
        field = np.fft.ifft2(phases * frequency ** -random.uniform(0.8, 2)).real
        fields.append((field - field.mean()) / field.std())
    return to_device(device, np.stack(fields).astype(np.float32))[0]


def _noise(images: Tensor, at: Tensor) -> Tensor:
    """Each face takes its own stretch of one fixed bank: a draw per face, not per pixel, costs a tenth."""
    batch, channels, height, width = images.shape
    stretches = noise_bank(images.device).unfold(0, channels * height * width, 1)
    return stretches[at].reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def _blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """(B, C, H, W) blurred by Gaussians of sigma (B, 1) up to `largest` pixels; edges repeat."""
    # One radius for every batch, so that a face's pixels do not depend on its company.
    radius = max(1, int(np.ceil(2.5 * largest)))
    line = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (line / sigma.clamp_min(0.05)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(images.shape[1], 0)
    batch, channels, height, width = images.shape
    flat = images.reshape(1, batch * channels, height, width)
    pad = torch.nn.functional.pad(flat, (radius,) * 4, mode="replicate")
    rows = torch.nn.functional.conv2d(pad, kernel[:, None, None, :], groups=batch * channels)
    both = torch.nn.functional.conv2d(rows, kernel[:, None, :, None], groups=batch * channels)
    return both.reshape(batch, channels, height, width)


def _coarser(size: int, largest: float) -> list[int]:
    """The sides in pixels, as many as `STEPS`, to which `downscale` shrinks."""
    return [max(1, round(size / factor)) for factor in largest ** (np.arange(STEPS) / (STEPS - 1))]


@cache
def resampling(size: int, largest: float, device: torch.device) -> Tensor:
    """(STEPS, size, size): what shrinks a line of pixels by area, by 1 to `largest`, and blows it up linearly."""
    steps = []
    for few in _coarser(size, largest):
        ends = np.arange(few + 1) * size / few
        pixel = np.arange(size)
        down = np.clip(np.minimum(ends[1:, None], pixel + 1) - np.maximum(ends[:-1, None], pixel), 0, 1) * few / size
        at = np.clip((pixel + 0.5) * few / size - 0.5, 0, few - 1)
        up = np.clip(1 - abs(at[:, None] - np.arange(few)), 0, 1)
        steps.append(up @ down)
    return to_device(device, np.stack(steps))[0]
