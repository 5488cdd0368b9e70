"""The shapes of well-known models' parameters, from the numbers of their configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from optgen.bench.cases import Shape, gpt2_shapes

Shapes = tuple[Shape, ...]


def dense(inputs: int, outputs: int, bias: bool = True) -> Shapes:
    """A linear layer, as torch.nn.Linear keeps it."""
    return ((outputs, inputs), (outputs,)) if bias else ((outputs, inputs),)


def bert_shapes(width: int, layers: int) -> Shapes:
    """BERT (uncased) with its pooler: two embeddings beside that of words, four projections and two more a layer."""
    norm: Shapes = ((width,), (width,))
    feed_forward = (*dense(width, 4 * width), *dense(4 * width, width))
    layer = (*(dense(width, width) * 4), *norm, *feed_forward, *norm)
    return ((30522, width), (512, width), (2, width), *norm, *(layer * layers), *dense(width, width))


def llama_shapes(
    vocabulary: int,
    width: int,
    layers: int,
    inner: int,
    keys: int,
    tied: bool = False,
    bias: bool = False,
) -> Shapes:
    """A decoder as Llama, Mistral and Qwen 2 have it.

    Args:
        inner: Width of the feed-forward network, which has a gate.
        keys: Width of all keys together, less than `width` where heads share them.
        tied: Whether the output layer is the embedding.
        bias: Whether queries, keys and values have biases.
    """
    attention = (*dense(width, width, bias), *(dense(width, keys, bias) * 2), *dense(width, width, False))
    mlp = (*(dense(width, inner, False) * 2), *dense(inner, width, False))
    layer = (*attention, *mlp, (width,), (width,))
    head: Shapes = () if tied else ((vocabulary, width),)
    return ((vocabulary, width), *(layer * layers), (width,), *head)


def vit_shapes(width: int, layers: int, patch: int, classes: int) -> Shapes:
    """A vision transformer of 224 x 224 pixels with a linear classifier."""
    norm: Shapes = ((width,), (width,))
    patches = (224 // patch) ** 2
    feed_forward = (*dense(width, 4 * width), *dense(4 * width, width))
    layer = (*(dense(width, width) * 4), *feed_forward, *norm, *norm)
    embedding: Shapes = ((1, 1, width), (1, patches + 1, width), (width, 3, patch, patch), (width,))
    return (*embedding, *(layer * layers), *norm, *dense(width, classes))


def resnet_shapes(depths: tuple[int, ...], classes: int = 1000) -> Shapes:
    """A residual network of bottlenecks, with batch norms behind its convolutions."""

    def convolution(inputs: int, outputs: int, size: int) -> Shapes:
        return ((outputs, inputs, size, size), (outputs,), (outputs,))

    shapes = [*convolution(3, 64, 7)]
    inputs = 64
    for stage, depth in enumerate(depths):
        inner = 64 * 2**stage
        for block in range(depth):
            shapes += convolution(inputs, inner, 1) + convolution(inner, inner, 3) + convolution(inner, 4 * inner, 1)
            if block == 0:
                shapes += convolution(inputs, 4 * inner, 1)
            inputs = 4 * inner
    return (*shapes, *dense(inputs, classes))


MODELS: Mapping[str, Callable[[], Shapes]] = {
    "gpt2": gpt2_shapes,
    "gpt2-medium": partial(gpt2_shapes, 1024, 24),
    "gpt2-large": partial(gpt2_shapes, 1280, 36),
    "gpt2-xl": partial(gpt2_shapes, 1600, 48),
    "bert-base": partial(bert_shapes, 768, 12),
    "bert-large": partial(bert_shapes, 1024, 24),
    "qwen2.5-0.5b": partial(llama_shapes, 151936, 896, 24, 4864, 128, tied=True, bias=True),
    "llama-3.2-1b": partial(llama_shapes, 128256, 2048, 16, 8192, 512, tied=True),
    "tinyllama-1.1b": partial(llama_shapes, 32000, 2048, 22, 5632, 256),
    "llama-2-7b": partial(llama_shapes, 32000, 4096, 32, 11008, 4096),
    "mistral-7b": partial(llama_shapes, 32000, 4096, 32, 14336, 1024),
    "llama-3-8b": partial(llama_shapes, 128256, 4096, 32, 14336, 1024),
    "llama-3-70b": partial(llama_shapes, 128256, 8192, 80, 28672, 1024),
    "vit-base": partial(vit_shapes, 768, 12, 16, 1000),
    "vit-large": partial(vit_shapes, 1024, 24, 16, 1000),
    "resnet-50": partial(resnet_shapes, (3, 4, 6, 3)),
    "resnet-101": partial(resnet_shapes, (3, 4, 23, 3)),
}
