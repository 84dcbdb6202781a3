"""CUDA graphs for the sampler's step: recorded once for each size, replayed from then on.

A step of a small model is thousands of short kernels, and launching them takes longer than running
them. A graph launches all of them at once. It reads its inputs where they were in memory when it
was captured, so they must stay there.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel


def run_directly(step: Callable, *arguments: Any) -> Any:
    """What stands in the place of StepGraphs where no graphs are wanted."""
    return step(*arguments)


class StepGraphs:
    """Calls a step by replaying its graph, which is captured at the first call for each arguments.

    If a capture fails, it says so once and calls the step directly from then on.
    """

    def __init__(self, device: torch.device):
        self.graphs: dict[tuple, tuple] = {}  # arguments -> (graph, its outputs)
        self.has_failed = False
        self.addresses: list[int] = []  # of the weights that the graphs read
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def forget_other_weights(self, model: PreTrainedModel) -> None:
        """Drop the graphs if the model's weights have moved: they would read the old ones."""
        addresses = [parameter.data_ptr() for parameter in model.parameters()]
        if addresses != self.addresses:
            self.graphs = {}
        self.addresses = addresses

    def __call__(self, step: Callable, *arguments: Any) -> Any:
        if arguments not in self.graphs and not self.has_failed:
            try:
                self.graphs[arguments] = self.capture(step, *arguments)
            except RuntimeError as error:
                # The first error tells more than those that follow from it.
                reason = str(error.__context__ or error).strip().split("\n")[0]
                problem = f"sampling without CUDA graphs, which is slower ({reason})"
                print(f"rollout.py: {problem}", file=sys.stderr)
                self.graphs, self.has_failed = {}, True
        if self.has_failed:
            return step(*arguments)
        graph, outputs = self.graphs[arguments]
        graph.replay()
        return outputs

    def capture(self, step: Callable, *arguments: Any) -> tuple[Any, Any]:
        """(graph, its outputs). Repeating a step is harmless: it writes the same to the cache."""
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self.graphs.values()))[0].pool() if self.graphs else None
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):  # also restores the stream if the capture fails
            for _ in range(2):  # what libraries set up at first use must not be captured
                step(*arguments)
            with torch.cuda.graph(graph, pool=pool, stream=self.stream):
                outputs = step(*arguments)
        torch.cuda.current_stream().wait_stream(self.stream)
        return graph, outputs
