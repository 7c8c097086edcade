"""A vLLM engine that is broken in one place at a time. A module of its own: Ray's workers import it by name."""

from dataclasses import replace

import numpy as np
from PIL import Image

from actors.rollout.engine import RolloutEngine
from hatch_ray.model.base import checksum

NORM = "model.language_model.norm.weight"


class FaultyEngine(RolloutEngine):
    """An engine with one fault at a time."""

    fault = ""

    def break_by(self, fault):
        self.fault = fault

    def _image(self, image):
        picture = super()._image(image)
        return Image.new("RGB", picture.size) if self.fault == "pixels" else picture

    def _run(self, requests, parameters):
        if self.fault == "prompt":
            requests = [replace(request, prompt=request.prompt + " ") for request in requests]
        return super()._run(requests, parameters)

    def _parameters(self, request, sampling, asked=()):
        image_id = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        free = self.fault == "ban"
        bias = self.logit_bias
        self.logit_bias = {token: value for token, value in bias.items() if not (free and token == image_id)}
        try:
            return super()._parameters(request, sampling, asked)
        finally:
            self.logit_bias = bias

    def load(self, packed):
        if self.fault == "bit":  # after the checksum of what arrived
            arrays = packed.arrays | {NORM: flip_bit(packed.arrays[NORM])}
            packed = replace(packed, arrays=arrays, checksum=checksum(arrays))
        if self.fault == "ignores":
            self.version = packed.version
            self.reset_caches()
            return self.version
        return super().load(packed)

    def reset_caches(self):
        if self.fault != "encoder cache":
            self.llm.llm_engine.reset_encoder_cache()
        if self.fault != "prefix cache":
            self.llm.reset_prefix_cache()


def flip_bit(array):
    """One weight with one bit of its exponent turned."""
    flipped = array.copy()
    flipped.reshape(-1).view(np.uint32)[0] ^= 1 << 29
    return flipped
