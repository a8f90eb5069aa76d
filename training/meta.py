"""Stage 2: meta-auxiliary training, Algorithm 1 of Chi et al. (CVPR 2021).

For each sample the weights are adapted by K steps on the auxiliary loss; the outer step lowers the
restoration loss *at the adapted weights*. Only the shared and the primary weights take the outer
step (Eq. 6); ``aux_update`` says how the auxiliary ones learn:

literal    after each sample, one inner step is kept (last line of the inner loop of Algorithm 1)
copy_back  after each sample, its adapted auxiliary weights are kept
outer      the outer optimiser moves them along the gradient of the auxiliary loss

With several processes the samples of one process do not see the auxiliary updates of another; these
are added up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgeadapt.errors import ConfigError
from edgeadapt.training.checkpoint import LearnedAdaptation
from edgeadapt.training.config import TrainingConfig
from edgeadapt.training.inner import Adapted, adapt, forward
from edgeadapt.training.network import DeblurNet, restoration_terms
from edgeadapt.training.stage import Average, clip, half_cosine, precision, set_gradients


class MetaStage:
    """The outer loop; the paper's settings are the defaults of `MetaConfig`."""

    kind = "meta"

    def __init__(self, network: DeblurNet, config: TrainingConfig) -> None:
        if not config.network.aux_branch:
            raise ConfigError("meta training: the network must have network.aux_branch = true.")
        self.network, self.config = network, config
        meta = config.meta
        groups = network.parameter_groups()
        self._auxiliary = groups["auxiliary"]
        learns = groups["shared"] + groups["primary"]
        if meta.aux_update == "outer":
            learns = learns + self._auxiliary
        parameters = dict(network.named_parameters())
        self._outer = {name: parameters[name] for name in learns}
        like = next(iter(parameters.values())).detach()
        self._log_step_sizes = nn.Parameter(like.new_full((len(parameters),), meta.step_size).log())
        kind = torch.optim.Adam if meta.outer_optimizer == "adam" else torch.optim.SGD
        rates: list[dict[str, Any]] = [{"params": list(self._outer.values())}]
        if meta.learn_step_sizes:
            rates.append({"params": [self._log_step_sizes], "lr": meta.step_sizes_rate})
        self._optimizer = kind(rates, lr=meta.learning_rate)

    def step(
        self, iteration: int, blurred: Tensor, sharp: Tensor, average: Average
    ) -> dict[str, Tensor]:
        """One outer step over the batch; returns the mean losses."""
        gradients, values, auxiliary_moves = self.gradients(blurred, sharp)
        # Every process has summed over its share; the mean of the shares is short by the number of
        # processes.
        share = self.config.meta.batch / len(blurred)
        average([*gradients, *values.values(), *auxiliary_moves])
        whole = share if self.config.meta.outer_reduce == "sum" else share / self.config.meta.batch
        set_gradients(self._learned(), [whole * gradient for gradient in gradients])
        clip(list(self._outer.values()), self.config.meta.clip_norm)
        self._set_rates(iteration)
        self._optimizer.step()
        with torch.no_grad():
            for parameter, move in zip(self._auxiliary_parameters(), auxiliary_moves, strict=True):
                parameter.add_(share * move)
        return values

    def gradients(
        self, blurred: Tensor, sharp: Tensor
    ) -> tuple[list[Tensor], dict[str, Tensor], list[Tensor]]:
        """Summed outer gradients, mean losses, and how far the auxiliary weights moved.

        The weights are as before when it returns.
        """
        learned = self._learned()
        sums = [torch.zeros_like(parameter) for parameter in learned]
        before = [parameter.detach().clone() for parameter in self._auxiliary_parameters()]
        losses = []
        for image, target in zip(torch.split(blurred, 1), torch.split(sharp, 1), strict=True):
            adapted, loss = self._sample(image, target)
            gradient = list(torch.autograd.grad(loss, learned, materialize_grads=True))
            if self.config.meta.aux_update == "outer":
                self._replace_auxiliary(gradient, adapted)
            for total, part in zip(sums, gradient, strict=True):
                total.add_(part.detach())
            self._keep(adapted)
            losses.append(torch.stack([adapted.losses[0], adapted.losses[-1], loss.detach()]))
        names = ("adaptation_first", "adaptation_last", "loss")
        values = dict(zip(names, torch.stack(losses).mean(0), strict=True))
        with torch.no_grad():
            moves = []
            for parameter, old in zip(self._auxiliary_parameters(), before, strict=True):
                moves.append(parameter - old)
                parameter.copy_(old)
        return sums, values, moves

    def restore(self, image: Tensor) -> dict[str, Tensor]:
        """Restored without and with the K steps."""
        parameters = dict(self.network.named_parameters())
        adapted = self._adapt(parameters, image, second_order=False).parameters
        with torch.no_grad(), precision(self.config.meta.precision, image.device):
            plain = self.network.restore(image)
            return {"psnr_before": plain, "psnr": forward(self.network, adapted, image).restored[0]}

    def state(self) -> dict[str, Any]:
        """The outer optimiser and the logarithms of the step sizes."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "log_step_sizes": self._log_step_sizes.detach().clone(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self._optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            self._log_step_sizes.copy_(state["log_step_sizes"])

    def adaptation(self) -> LearnedAdaptation:
        """K, the optimiser and the step sizes, one a parameter if they were learned."""
        meta = self.config.meta
        sizes = {name: float(size.detach()) for name, size in self._step_sizes().items()}
        learned = sizes if meta.learn_step_sizes else {}
        return LearnedAdaptation(meta.steps, meta.inner_optimizer, meta.step_size, learned)

    def _sample(self, image: Tensor, target: Tensor) -> tuple[Adapted, Tensor]:
        """Adapt to one image; the restoration loss at the adapted weights, and what of it at the
        weights as they are the configuration adds.
        """
        parameters = dict(self.network.named_parameters())
        adapted = self._adapt(parameters, image, self.config.meta.order == 2)
        loss = self._restoration_loss(adapted.parameters, image, target)
        if self.config.meta.unadapted_weight > 0:
            unadapted = self._restoration_loss(parameters, image, target)
            loss = loss + self.config.meta.unadapted_weight * unadapted
        return adapted, loss

    def _restoration_loss(
        self, parameters: Mapping[str, Tensor], image: Tensor, target: Tensor
    ) -> Tensor:
        with precision(self.config.meta.precision, image.device):
            outputs = forward(self.network, parameters, image)
            terms = restoration_terms(self.network, outputs, target, self.config.meta.restoration)
            return terms.sum()

    def _adapt(
        self, parameters: Mapping[str, Tensor], image: Tensor, second_order: bool
    ) -> Adapted:
        meta = self.config.meta
        with precision(self.config.meta.precision, image.device):
            return adapt(
                self.network,
                parameters,
                image,
                self._step_sizes(),
                meta.steps,
                meta.inner_optimizer,
                second_order,
                meta.loss,
            )

    def _replace_auxiliary(self, gradient: list[Tensor], adapted: Adapted) -> None:
        """The auxiliary weights learn from their own loss, not from the restoration."""
        for index, name in enumerate(self._outer):
            if name in adapted.first_gradient and name in self._auxiliary:
                gradient[index] = adapted.first_gradient[name]

    @torch.no_grad()
    def _keep(self, adapted: Adapted) -> None:
        """Keep what one sample taught the auxiliary weights, before the next sample comes."""
        if self.config.meta.aux_update == "outer":
            return
        literal = self.config.meta.aux_update == "literal"
        kept = adapted.first_parameters if literal else adapted.parameters
        for name, parameter in zip(self._auxiliary, self._auxiliary_parameters(), strict=True):
            parameter.copy_(kept[name])

    def _step_sizes(self) -> dict[str, Tensor]:
        names = [name for name, _ in self.network.named_parameters()]
        if self.config.meta.learn_step_sizes:
            return dict(zip(names, self._log_step_sizes.exp(), strict=True))
        return dict.fromkeys(names, self._log_step_sizes.new_tensor(self.config.meta.step_size))

    def _set_rates(self, iteration: int) -> None:
        meta = self.config.meta
        share = half_cosine(iteration / meta.iterations) if meta.schedule == "cosine" else 1.0
        rates = (meta.learning_rate, meta.step_sizes_rate)  # the second group may not be there
        for group, rate in zip(self._optimizer.param_groups, rates, strict=False):
            group["lr"] = rate * share

    def _learned(self) -> list[nn.Parameter]:
        learns_sizes = self.config.meta.learn_step_sizes
        return [*self._outer.values(), *([self._log_step_sizes] if learns_sizes else [])]

    def _auxiliary_parameters(self) -> list[nn.Parameter]:
        return [self.network.get_parameter(name) for name in self._auxiliary]
