"""Actor-critic on a cart with a pole: two losses from one rollout, each with an optimizer.

    python examples/actor_critic.py [--quick] [--seed N] [--plot return.png]

The environment is the cart-pole of Barto, Sutton and Anderson (1983), for a whole batch of carts, in plain torch. The data
are the first states. ``train_step`` plays them to the end and returns ``actor_loss`` and ``critic_loss``. The gradients of each
reach the parameters of the optimizer with its name only. The advantages are those of Schulman et al. (2016). The result is
the mean number of steps for which the pole stays up, of at most 200, before and after the training.
"""

import argparse

import torch
from torch import nn

import easytorch

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="a third of the updates")
options.add_argument("--seed", type=int, default=0, help="random seed")
options.add_argument("--plot", metavar="FILE", help="write a figure of the steps")
args = options.parse_args()
torch.manual_seed(args.seed)

STEPS, DISCOUNT, DECAY = 200, 0.98, 0.95


def move(state: torch.Tensor, push: torch.Tensor) -> torch.Tensor:
    """Return the states 0.02 seconds later, [N, 4]: position, velocity, angle, angular velocity; ``push`` is 0 or 1."""
    _, velocity, angle, spin = state.unbind(1)
    force, sine, cosine = 20.0 * push - 10.0, angle.sin(), angle.cos()
    drive = (force + 0.05 * spin.square() * sine) / 1.1
    acceleration = (9.8 * sine - cosine * drive) / (0.5 * (4 / 3 - 0.1 * cosine.square() / 1.1))
    rates = torch.stack([velocity, drive - 0.05 * acceleration * cosine / 1.1, spin, acceleration], dim=1)
    return state + 0.02 * rates


def is_up(state: torch.Tensor) -> torch.Tensor:
    return (state[:, 0].abs() < 2.4) & (state[:, 2].abs() < 0.2095)


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2))
        self.critic = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return self.actor(state)


class Agent(easytorch.Model):
    def play(self, state):
        states, pushes, alive = [state], [], [is_up(state)]
        with torch.no_grad():
            for _ in range(STEPS):
                pushes.append(torch.distributions.Categorical(logits=self(states[-1])).sample())
                states.append(torch.where(alive[-1][:, None], move(states[-1], pushes[-1]), states[-1]))
                alive.append(alive[-1] & is_up(states[-1]))
        return torch.stack(states), torch.stack(pushes), torch.stack(alive).float()

    def train_step(self, batch):
        states, pushes, alive = self.play(self.unpack(batch).x)
        values, counts = self.module.critic(states).squeeze(-1), alive[:-1]
        # The reward is 1 for each step after which the pole is up.
        errors = (alive[1:] * (1 + DISCOUNT * values[1:]) - values[:-1]).detach()
        advantages, total = torch.zeros_like(errors), torch.zeros_like(errors[0])
        for i in reversed(range(STEPS)):
            advantages[i] = total = errors[i] + DISCOUNT * DECAY * alive[i + 1] * total
        targets = values[:-1].detach() + advantages
        scaled = (advantages - advantages[counts > 0].mean()) / (advantages[counts > 0].std() + 1e-6)
        policy = torch.distributions.Categorical(logits=self(states[:-1]))
        gain = policy.log_prob(pushes) * scaled + 0.01 * policy.entropy()
        return {
            "actor_loss": -(gain * counts).sum() / counts.sum(),
            "critic_loss": ((values[:-1] - targets).square() * counts).sum() / counts.sum(),
            "steps": alive[1:].sum(0).mean(),
        }

    def test_step(self, batch):
        return {"steps": self.play(self.unpack(batch).x)[2][1:].sum(0).mean()}


starts, test_starts = torch.rand(3200, 4) * 0.1 - 0.05, torch.rand(500, 4) * 0.1 - 0.05
agent = Agent(ActorCritic()).compile(
    {"actor": ("adam", {"lr": 3e-3}), "critic": ("adam", {"lr": 1e-2})}, clip_grad_norm=1.0
)
(before,) = agent.evaluate(test_starts, batch_size=500, verbose=0)
agent.fit(starts, epochs=2 if args.quick else 6, batch_size=32, verbose=2)
(after,) = agent.evaluate(test_starts, batch_size=500, verbose=0)
print(f"Result: steps before training = {before:.1f}")
print(f"Result: steps after training = {after:.1f}")
print(f"Result: parameters = {sum(p.numel() for p in agent.module.parameters())}")
if args.plot:
    agent.history.plot("steps", path=args.plot)
