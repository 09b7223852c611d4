"""Batches that are one object, which is input and target, as in PyTorch Geometric."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from easytorch import Model
from easytorch.data import batch_size
from tests.loops import same_weights, twins


class Graph:
    """Nodes with features and labels, with the attributes of a graph of PyTorch Geometric."""

    def __init__(self, x, y=None, **others):
        self.x, self.y, self.num_nodes = x, y, len(x)
        vars(self).update(others)

    def to(self, device, **options):
        moved = {
            key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in vars(self).items()
        }
        graph = Graph(moved.pop("x"))
        vars(graph).update(moved)
        return graph


def nodes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, generator=generator), torch.randint(3, (count,), generator=generator)


class Nodes(nn.Module):
    """Classifies each node."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, data):
        return self.layer(data.x)


class Graphs(Nodes):
    """Classifies each graph by the mean of its nodes."""

    def forward(self, data):
        sums = torch.zeros(data.num_graphs, 4).index_add(0, data.batch, data.x)
        return self.layer(sums / torch.bincount(data.batch, minlength=data.num_graphs)[:, None])


class ByArguments(Nodes):
    """Takes two attributes of the graph, and an optional one."""

    def forward(self, x, edge_weight, edge_attr=None):
        return self.layer(x * edge_weight[:, None])


def collate(samples):
    """Join pairs of features and a label to one batch of graphs."""
    batch = torch.repeat_interleave(torch.arange(len(samples)), torch.tensor([len(x) for x, _ in samples]))
    labels = torch.stack([y for _, y in samples])
    return Graph(torch.cat([x for x, _ in samples]), labels, batch=batch, num_graphs=len(samples))


SAMPLES = [(nodes(2 + i % 3, i)[0], torch.tensor(i % 3)) for i in range(10)]


def compiled(net, loss="cross_entropy", **options):
    return Model(net, device="cpu").compile("sgd", loss, lr=0.1, **options)


def hand_loop(net, batches, count, epochs=2):
    """Train as the tutorials of PyTorch Geometric do, and return the mean loss of each epoch over graphs or nodes."""
    optimizer, means = torch.optim.SGD(net.parameters(), 0.1), []
    for _ in range(epochs):
        total, size = 0.0, 0
        for data in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(data), data.y)
            loss.backward()
            optimizer.step()
            total, size = total + loss.item() * count(data), size + count(data)
        means.append(total / size)
    return means


def test_batches_of_graphs_equal_the_hand_written_loop():
    net, plain = twins(Graphs())
    loader = DataLoader(SAMPLES, 4, collate_fn=collate)
    model = compiled(net, metrics=["accuracy"])
    history = model.fit(loader, epochs=2, validation_data=loader, verbose=0)
    means = hand_loop(plain, loader, lambda data: data.num_graphs)
    assert same_weights(net, plain)
    assert history["loss"] == pytest.approx(means, abs=1e-7)
    assert 0 <= history["val_accuracy"][-1] <= 1


def test_graphs_with_a_label_for_each_node_count_nodes():
    net, plain = twins(Nodes())
    batches = [Graph(*nodes(5)), Graph(*nodes(2, 1)), Graph(*nodes(9, 2), num_graphs=3)]
    assert [batch_size(batch) for batch in batches] == [5, 2, 9]
    history = compiled(net).fit(batches, epochs=2, verbose=0)
    means = hand_loop(plain, batches, lambda data: data.num_nodes)
    assert same_weights(net, plain)
    assert history["loss"] == pytest.approx(means, abs=1e-7)


def test_a_mean_over_nodes_is_weighted_by_nodes():
    class Numbers(Nodes):
        def forward(self, data):
            return self.layer(data.x)[:, 0]

    net = Numbers()
    batches = [Graph(x, x.sum(1), num_graphs=2) for x in (nodes(4)[0], nodes(9, 1)[0])]
    loss = compiled(net, "mse").evaluate(batches, verbose=0)["loss"]
    joined = Graph(torch.cat([batch.x for batch in batches]), torch.cat([batch.y for batch in batches]))
    assert loss == pytest.approx(F.mse_loss(net(joined), joined.y).item(), rel=1e-6)


def test_accumulated_graphs_equal_one_batch():
    net, plain = twins(Graphs())
    compiled(net, gradient_accumulation_steps=3).fit(DataLoader(SAMPLES, 4, collate_fn=collate), verbose=0)
    compiled(plain).fit(DataLoader(SAMPLES, 10, collate_fn=collate), verbose=0)
    torch.testing.assert_close(net.state_dict(), plain.state_dict(), rtol=0, atol=1e-6)


def test_attributes_become_arguments_of_the_module():
    net, plain = twins(ByArguments())
    batches = [Graph(*nodes(6), edge_weight=torch.rand(6)), Graph(*nodes(3, 1), edge_weight=torch.rand(3))]
    compiled(net).fit(batches, verbose=0)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    for data in batches:
        F.cross_entropy(plain(data.x, data.edge_weight), data.y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert same_weights(net, plain)


def test_predictions_are_rows_of_nodes_or_graphs():
    batches = [Graph(nodes(5)[0], num_graphs=2), Graph(nodes(3, 1)[0], num_graphs=1)]
    assert compiled(Nodes()).predict(batches, verbose=0).shape == (8, 3)
    loader = DataLoader(SAMPLES, 4, collate_fn=collate)
    model = compiled(Graphs())
    outputs, targets = model.predict(loader, targets=True, verbose=0)
    assert outputs.shape == (10, 3)
    assert targets.tolist() == [i % 3 for i in range(10)]
    assert model.predict_on_batch(collate(SAMPLES[:3])).shape == (3, 3)
    assert model.train_on_batch(collate(SAMPLES[:3]))["loss"] > 0


def test_a_mask_of_nodes_that_would_not_be_used_is_refused():
    x, y = nodes(9)
    graph = Graph(x, y, train_mask=torch.arange(9) < 3, val_mask=torch.arange(9) > 5)
    with pytest.raises(ValueError, match=r"train_mask, val_mask, but the loss .*torch\.where\(graph\.train_mask"):
        compiled(Nodes()).fit([graph], verbose=0)
    assert compiled(Nodes()).predict([graph], verbose=0).shape == (9, 3)


def test_a_loss_may_take_the_mask_by_name():
    def masked(y_pred, y, train_mask):
        return F.cross_entropy(y_pred[train_mask], y[train_mask])

    x, y = nodes(9)
    graph = Graph(x, y, train_mask=torch.arange(9) < 3)
    net = Nodes()
    expected = F.cross_entropy(net(graph)[:3], y[:3]).item()
    assert compiled(net, masked).fit([graph], verbose=0)["loss"] == [pytest.approx(expected, abs=1e-7)]


def test_masked_labels_equal_a_loss_of_the_masked_nodes():
    x, y = nodes(9)
    train_mask, val_mask = torch.arange(9) < 3, torch.arange(9) > 5
    net, plain = twins(Nodes())
    history = compiled(net, metrics=["accuracy"]).fit(
        [Graph(x, torch.where(train_mask, y, -100))],
        validation_data=[Graph(x, torch.where(val_mask, y, -100))],
        verbose=0,
    )
    loss = F.cross_entropy(plain.layer(x)[train_mask], y[train_mask])
    loss.backward()
    torch.optim.SGD(plain.parameters(), 0.1).step()
    assert same_weights(net, plain)
    outputs = plain.layer(x)[val_mask]
    assert history["loss"][0] == pytest.approx(loss.item(), abs=1e-7)
    assert history["val_loss"][0] == pytest.approx(F.cross_entropy(outputs, y[val_mask]).item(), abs=1e-7)
    assert history["val_accuracy"][0] == pytest.approx((outputs.argmax(1) == y[val_mask]).float().mean().item())


def sampled(seeds, count, seed):
    """Return a subgraph as a NeighborLoader does: the seeds come first."""
    return Graph(*nodes(count, seed), batch_size=seeds, input_id=torch.arange(seeds))


def test_only_the_seeds_of_a_sampled_subgraph_count():
    net, plain = twins(Nodes())
    batches = [sampled(4, 9, 0), sampled(2, 7, 1)]
    model = compiled(net, metrics=["accuracy"])
    history = model.fit(batches, verbose=0)
    optimizer, total, correct = torch.optim.SGD(plain.parameters(), 0.1), 0.0, 0
    for data in batches:
        outputs, labels = plain(data)[: data.batch_size], data.y[: data.batch_size]
        loss = F.cross_entropy(outputs, labels)
        correct += int((outputs.argmax(1) == labels).sum())
        total += loss.item() * data.batch_size
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert same_weights(net, plain)
    assert history["loss"][0] == pytest.approx(total / 6, abs=1e-7)
    assert history["accuracy"][0] == pytest.approx(correct / 6)
    assert model.predict(batches, verbose=0).shape == (6, 3)


def test_seeds_with_numbers_as_targets_name_the_step():
    batch = sampled(4, 9, 0)
    batch.y = batch.y.float()
    with pytest.raises(ValueError, match=r"Only the first 4 of 9 nodes .*Override train_step"):
        compiled(Nodes(), "mse").fit([batch], verbose=0)


def test_labels_of_edges_are_the_targets_of_link_prediction():
    class Links(Nodes):
        def forward(self, data):
            h = self.layer(data.x)
            return (h[data.edge_label_index[0]] * h[data.edge_label_index[1]]).sum(1)

    x, y = nodes(6)
    links = Graph(x, y, edge_label_index=torch.randint(6, (2, 8)), edge_label=torch.arange(8) % 2 * 1.0)
    net = Links()
    model = compiled(net, "bce_with_logits", metrics=["accuracy"])
    loss = model.evaluate([links], verbose=0)["loss"]
    assert loss == pytest.approx(F.binary_cross_entropy_with_logits(net(links), links.edge_label).item(), abs=1e-7)
    assert model.predict([links], verbose=0).shape == (8,)
    assert batch_size(links) == 8


def test_export_of_a_graph_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is a graph"):
        compiled(Nodes()).export(tmp_path / "net.pt2", [Graph(*nodes(4))])


def test_summary_of_graphs_is_a_table_without_shapes():
    model = compiled(Nodes())
    loader = DataLoader(SAMPLES, 4, collate_fn=collate)
    assert "Linear" in str(model.summary(collate(SAMPLES[:2])))
    assert "Linear" in str(Model(Graphs(), device="cpu").summary(loader))
